<?php
// Fetches and posts with PHP's curl or its streams: get.php curl|streams ORIGIN
[, $library, $origin] = $argv;
$body = str_repeat("0123456789", 5000);

function tell($status, $answer)
{
    echo $status, " ", strlen($answer), " ", hash("sha256", $answer), "\n";
}

if ($library === "curl") {
    $handle = curl_init();
    curl_setopt($handle, CURLOPT_RETURNTRANSFER, true);
    foreach (["/bytes/70000" => null, "/echo" => $body] as $path => $data) {
        curl_setopt($handle, CURLOPT_URL, $origin . $path);
        if ($data !== null) {
            curl_setopt($handle, CURLOPT_POSTFIELDS, $data);
        }
        $answer = curl_exec($handle);
        if ($answer === false) {
            fwrite(STDERR, curl_error($handle) . "\n");
            exit(1);
        }
        tell(curl_getinfo($handle, CURLINFO_RESPONSE_CODE), $answer);
    }
} else {
    foreach (["/bytes/70000" => null, "/echo" => $body] as $path => $data) {
        $http = ["header" => "Content-Type: text/plain"];
        if ($data !== null) {
            $http += ["method" => "POST", "content" => $data];
        }
        $answer = file_get_contents($origin . $path, false, stream_context_create(["http" => $http]));
        if ($answer === false) {
            exit(1);
        }
        tell(explode(" ", $http_response_header[0])[1], $answer);
    }
}
