// Fetches and posts with net/http: get ORIGIN
package main

import (
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
)

func tell(answer *http.Response, err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Printf("%d %d %x\n", answer.StatusCode, len(body), sha256.Sum256(body))
}

func main() {
	origin := os.Args[1]
	tell(http.Get(origin + "/bytes/70000"))
	tell(http.Post(origin+"/echo", "text/plain", strings.NewReader(strings.Repeat("0123456789", 5000))))
}
