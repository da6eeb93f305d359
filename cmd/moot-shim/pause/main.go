// Command pause is the process that holds a pod's namespaces open.
//
// It is process 1 of every pod sandbox: it sleeps, reaps the orphans it
// inherits when a pod shares its process namespace, and leaves with status 0
// on SIGTERM or SIGINT. It is built apart from moot-shim because one runs in
// every pod: linking nothing keeps its private memory well under a megabyte.
package main

import (
	"errors"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGCHLD)
	for sig := range signals {
		if sig != syscall.SIGCHLD {
			return
		}
		reap()
	}
}

// reap collects every child that has ended. Signals of one kind merge while
// they wait, so one SIGCHLD may stand for many.
func reap() {
	for {
		pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
	}
}
