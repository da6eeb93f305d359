package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// warmUp connections at the start of a turn are not counted: another side ran
// before.
const warmUp = 20

// listen accepts connections to the server pod, which this thread is in, and
// closes them, until the process ends.
func listen() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Port: livePort}); err != nil {
		return err
	}
	// What waits to be accepted must not slow the clients down.
	if err := os.WriteFile("/proc/sys/net/core/somaxconn", []byte("65535"), 0); err != nil {
		return err
	}
	if err := unix.Listen(fd, 65535); err != nil {
		return err
	}
	go func() {
		for {
			if conn, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC); err == nil {
				_ = unix.Close(conn)
			}
		}
	}()
	return nil
}

// connect opens a TCP connection and resets it, so that it leaves no port in use,
// and returns how long connect() took. It calls the kernel without telling Go's
// scheduler, whose work would be in the time; no call blocks for longer than the
// seconds set here, in which a lost packet is sent again.
func connect(to [4]byte, port uint16) (time.Duration, error) {
	fd, _, errno := unix.RawSyscall(unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if errno != 0 {
		return 0, errno
	}
	linger, patience := unix.Linger{Onoff: 1}, unix.Timeval{Sec: 5}
	addr := unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: to, Port: port<<8 | port>>8}
	_, _, errLinger := unix.RawSyscall6(unix.SYS_SETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_LINGER,
		uintptr(unsafe.Pointer(&linger)), unsafe.Sizeof(linger), 0)
	_, _, errPatience := unix.RawSyscall6(unix.SYS_SETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO,
		uintptr(unsafe.Pointer(&patience)), unsafe.Sizeof(patience), 0)
	begin := time.Now()
	_, _, errno = unix.RawSyscall(unix.SYS_CONNECT, fd, uintptr(unsafe.Pointer(&addr)), unsafe.Sizeof(addr))
	took := time.Since(begin)
	_, _, errClose := unix.RawSyscall(unix.SYS_CLOSE, fd, 0, 0)
	for _, errno := range []syscall.Errno{errLinger, errPatience, errno, errClose} {
		if errno != 0 {
			return took, errno
		}
	}
	return took, nil
}

// connectService connects to one of the Services, or without a proxy to one of
// the pods.
func (n *node) connectService(i int) (time.Duration, error) {
	if n.Side == direct {
		return connect(podAddrs[i%len(podAddrs)], livePort)
	}
	return connect(clusterAddr(i), 80)
}

func (n *node) where(q question) int {
	if q.Pod {
		return n.net.client
	}
	return 0
}

func (n *node) connectOneByOne(q question) ([]time.Duration, error) {
	times := make([]time.Duration, 0, q.Count)
	err := within(n.where(q), func() error {
		for i := range warmUp + q.Count {
			took, err := n.connectService(rand.IntN(n.Services))
			if err != nil {
				return fmt.Errorf("connect: %w", err)
			}
			if i >= warmUp {
				times = append(times, took)
			}
		}
		return nil
	})
	return times, err
}

func (n *node) connectAtOnce(q question) ([]time.Duration, error) {
	times, errs := make([][]time.Duration, q.Clients), make([]error, q.Clients)
	var clients sync.WaitGroup
	for c := range q.Clients {
		clients.Go(func() {
			errs[c] = within(n.where(q), func() error {
				for begin := time.Now(); time.Since(begin) < q.Period; {
					took, err := n.connectService(rand.IntN(n.Services))
					if err != nil {
						return fmt.Errorf("connect: %w", err)
					}
					times[c] = append(times[c], took)
				}
				return nil
			})
		})
	}
	clients.Wait()
	var all []time.Duration
	for _, t := range times {
		all = append(all, t...)
	}
	return all, errors.Join(errs...)
}

// moveEndpoints moves the endpoints of the first Service between a port where
// somebody listens and one where nobody does, and measures from there to the
// first connection that ends as it does at the new port.
func (n *node) moveEndpoints(ctx context.Context, q question) ([]time.Duration, error) {
	var times []time.Duration
	for i := range q.Count {
		if err := pause(ctx, q.Wait); err != nil {
			return nil, err
		}
		port, want := int32(deadPort), error(unix.ECONNREFUSED)
		if i%2 == 1 {
			port, want = livePort, nil
		}
		begin := time.Now()
		n.api.setFirstPort(port)
		ctx, cancel := context.WithTimeoutCause(ctx, n.Bound, fmt.Errorf("a change was not seen after %v", n.Bound))
		err := n.await(ctx, 0, want)
		cancel()
		if err != nil {
			return nil, err
		}
		times = append(times, time.Since(begin))
	}
	return times, nil
}

// await connects to a Service until that ends as wanted. It rests for a hundredth
// of the time it has waited, to leave the processors to the proxy.
func (n *node) await(ctx context.Context, service int, want error) error {
	for begin := time.Now(); ; {
		if _, err := n.connectService(service); err == want { //nolint:errorlint // an Errno as it is
			return nil
		}
		if pause(ctx, time.Since(begin)/100) != nil {
			return context.Cause(ctx)
		}
	}
}
