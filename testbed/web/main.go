// Command web is the small app that demos and tests run in pods: one static
// binary that serves HTTP, can be a validating webhook, asks as a client of a
// Service does, and brings the few tools that tests need inside a container.
//
//	web [serve]         serve HTTP; see serve.go for what it answers
//	web webhook         serve a validating webhook over TLS; see webhook.go
//	web api             serve an aggregated API over TLS; see webhook.go
//	web ask ADDRESS     ask a server again and again; see ask.go
//	web hold ADDRESS    ask over connections that are kept; see ask.go
//	web lookup NAME     print the addresses of a name, a line each
//	web query TYPE NAME print records of a name; see query.go
//	web nameserver ADDRESS ANSWER  serve one answer to all names; see query.go
//	web cat FILE...     print files
//	web echo [ARG...]   print arguments
//	web env             print the environment
//	web write FILE ARG  write the argument to a file
//	web get URL         print what a URL answers
//	web touch FILE      create a file
//	web sleep SECONDS   wait
//	web exit STATUS     end with that status
//	web read            print each line of the input with "got "
//
// Called by the name tar it packs and unpacks, as kubectl cp wants it.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	name, args := filepath.Base(os.Args[0]), os.Args[1:]
	if name == "tar" {
		exit(runTar(args))
	}
	if len(args) == 0 || strings.HasPrefix(args[0], "-") {
		args = append([]string{"serve"}, args...)
	}
	exit(run(args[0], args[1:]))
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "web:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func run(name string, args []string) error {
	switch name {
	case "serve":
		return serve(args)
	case "webhook", "api":
		return serveTLS(name, args)
	case "ask", "hold":
		return ask(name, args)
	case "query":
		return query(args)
	case "nameserver":
		return nameserver(args)
	case "cat":
		return cat(args)
	case "echo":
		fmt.Println(strings.Join(args, " "))
		return nil
	case "env":
		fmt.Println(strings.Join(os.Environ(), "\n"))
		return nil
	case "read":
		return read()
	}
	if len(args) == 0 {
		return fmt.Errorf("%s: an argument is missing", name)
	}
	switch name {
	case "write":
		return os.WriteFile(args[0], []byte(strings.Join(args[1:], " ")+"\n"), 0o644)
	case "touch":
		return os.WriteFile(args[0], nil, 0o644)
	case "get":
		return get(args[0])
	case "lookup":
		return lookup(args[0])
	case "sleep":
		return sleep(args[0])
	case "exit":
		status, err := strconv.Atoi(args[0])
		if err != nil {
			return err
		}
		os.Exit(status)
	}
	return fmt.Errorf("unknown command %q", name)
}

func cat(files []string) error {
	for _, file := range files {
		f, err := os.Open(file)
		if err != nil {
			return err
		}
		_, err = io.Copy(os.Stdout, f)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return nil
}

func read() error {
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		fmt.Println("got", in.Text())
	}
	return in.Err()
}

func get(url string) error {
	client := &http.Client{Timeout: 10 * time.Second}
	resp, err := client.Get(url)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if _, err := io.Copy(os.Stdout, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	return nil
}

func lookup(name string) error {
	addrs, err := net.LookupHost(name)
	for _, addr := range addrs {
		fmt.Println(addr)
	}
	return err
}

// sleep waits, but ends at once when it is asked to.
func sleep(seconds string) error {
	d, err := time.ParseDuration(seconds + "s")
	if err != nil {
		return err
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, unix.SIGTERM, unix.SIGINT)
	select {
	case <-stop:
	case <-time.After(d):
	}
	return nil
}
