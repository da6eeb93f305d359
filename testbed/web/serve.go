package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// serve answers until it is asked to stop, then finishes what it has begun:
//
//	GET /           who answers: host name and the variable MESSAGE
//	GET /who        who answers whom, as JSON; see who.go
//	GET /healthz    200, or 500 after /break
//	GET /readyz     200 after --ready-after, unless /unready was called
//	GET /env        the environment
//	GET /ip         the caller's address
//	GET /read?f=    a file; POST /write?f= writes one, synced to the disk
//	GET /exit?s=    end with a status
//	GET /break, /unready, /ready
//
// Each datagram to the same addresses is answered as /who is.
func serve(args []string) error {
	flags := flag.NewFlagSet("web serve", flag.ExitOnError)
	addr := flags.String("addr", ":8080", "where to listen, several with commas between")
	readyAfter := flags.Duration("ready-after", 0, "when to become ready")
	startAfter := flags.Duration("start-after", 0, "when to begin to listen")
	if err := flags.Parse(args); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	select {
	case <-time.After(*startAfter):
	case <-ctx.Done():
		return nil
	}
	srv := &http.Server{
		Handler: newApp(*readyAfter), ReadHeaderTimeout: 30 * time.Second,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, reached{}, c.LocalAddr())
		},
	}
	failed := make(chan error, 1)
	fail := func(err error) {
		select {
		case failed <- err:
		default: // another was first
		}
	}
	for at := range strings.SplitSeq(*addr, ",") {
		l, err := net.Listen("tcp", at)
		if err != nil {
			return err
		}
		datagrams, err := net.ListenPacket("udp", at)
		if err != nil {
			return err
		}
		go func() { fail(srv.Serve(l)) }()
		go func() { fail(answerDatagrams(datagrams)) }()
	}
	fmt.Println("web: serving on", *addr)
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
		fmt.Println("web: stopping")
		done, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		return srv.Shutdown(done)
	}
}

// app is the state behind the answers.
type app struct {
	ready  time.Time
	broken atomic.Bool
	hidden atomic.Bool
}

func newApp(readyAfter time.Duration) http.Handler {
	a := &app{ready: time.Now().Add(readyAfter)}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", a.hello)
	mux.HandleFunc("GET /who", who)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { check(w, !a.broken.Load()) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		check(w, !a.hidden.Load() && time.Now().After(a.ready))
	})
	mux.HandleFunc("GET /break", func(http.ResponseWriter, *http.Request) { a.broken.Store(true) })
	mux.HandleFunc("GET /unready", func(http.ResponseWriter, *http.Request) { a.hidden.Store(true) })
	mux.HandleFunc("GET /ready", func(http.ResponseWriter, *http.Request) { a.hidden.Store(false) })
	mux.HandleFunc("GET /env", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, strings.Join(os.Environ(), "\n"))
	})
	mux.HandleFunc("GET /ip", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, r.RemoteAddr) })
	mux.HandleFunc("GET /read", func(w http.ResponseWriter, r *http.Request) {
		b, err := os.ReadFile(r.FormValue("f"))
		reply(w, string(b), err)
	})
	mux.HandleFunc("POST /write", func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 16<<20))
		if err == nil {
			err = writeSynced(r.URL.Query().Get("f"), b)
		}
		reply(w, "written\n", err)
	})
	mux.HandleFunc("GET /exit", func(_ http.ResponseWriter, r *http.Request) {
		status, _ := strconv.Atoi(r.FormValue("s"))
		fmt.Println("web: asked to exit with", status)
		os.Exit(status)
	})
	return mux
}

func (a *app) hello(w http.ResponseWriter, _ *http.Request) {
	name, err := os.Hostname()
	message := os.Getenv("MESSAGE")
	if message == "" {
		message = "hello"
	}
	reply(w, fmt.Sprintf("%s from %s\n", message, name), err)
}

func check(w http.ResponseWriter, ok bool) {
	if !ok {
		http.Error(w, "no", http.StatusInternalServerError)
		return
	}
	fmt.Fprintln(w, "ok")
}

func reply(w http.ResponseWriter, text string, err error) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	fmt.Fprint(w, text)
}

func writeSynced(file string, b []byte) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Sync(), f.Close())
}
