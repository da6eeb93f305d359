// Command app is what the tests run in containers: a server with a heartbeat
// in its log, and a few one-shot commands.
package main

import (
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
)

func main() {
	switch {
	case len(os.Args) > 2 && os.Args[1] == "say":
		fmt.Println(strings.Join(os.Args[2:], " "))
	case len(os.Args) > 1 && os.Args[1] == "fail":
		fmt.Fprintln(os.Stderr, "failing")
		os.Exit(3)
	default:
		serve()
	}
}

func serve() {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fmt.Println("asked for", r.URL.Path)
		fmt.Fprintf(w, "pid %d", os.Getpid())
	})
	go func() {
		fmt.Fprintln(os.Stderr, http.ListenAndServe(":8080", nil))
		os.Exit(1)
	}()
	fmt.Println("serving")
	<-stop
	fmt.Println("stopping")
}
