import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;
import java.security.MessageDigest;
import java.util.HexFormat;

/** Fetches and posts with java.net.http: Get ORIGIN */
class Get {
    static void tell(HttpResponse<byte[]> answer) throws Exception {
        var digest = MessageDigest.getInstance("SHA-256").digest(answer.body());
        System.out.println(answer.statusCode() + " " + answer.body().length + " " + HexFormat.of().formatHex(digest));
    }

    public static void main(String[] arguments) throws Exception {
        var origin = arguments[0];
        var client = HttpClient.newHttpClient();
        var get = HttpRequest.newBuilder(URI.create(origin + "/bytes/70000")).build();
        tell(client.send(get, BodyHandlers.ofByteArray()));
        var body = BodyPublishers.ofString("0123456789".repeat(5000));
        var post = HttpRequest.newBuilder(URI.create(origin + "/echo")).POST(body).build();
        tell(client.send(post, BodyHandlers.ofByteArray()));
    }
}
