import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.security.MessageDigest;
import java.util.HexFormat;

/** GET by Java's HttpClient, unmodified: java Fetch.java URL. Prints one JSON object. */
public class Fetch {
    public static void main(String[] arguments) throws Exception {
        HttpResponse<byte[]> answer = HttpClient.newHttpClient()
                .send(HttpRequest.newBuilder(URI.create(arguments[0])).build(), HttpResponse.BodyHandlers.ofByteArray());
        String digest = HexFormat.of().formatHex(MessageDigest.getInstance("SHA-256").digest(answer.body()));
        System.out.printf("{\"status\": %d, \"length\": %d, \"sha256\": \"%s\", \"version\": \"%s\"}%n",
                answer.statusCode(), answer.body().length, digest, answer.version());
    }
}
