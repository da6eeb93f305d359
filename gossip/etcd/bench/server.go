package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/pprof"
	"strconv"
	"strings"
	"syscall"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/mootkube/moot/gossip/etcd"
	"github.com/mootkube/moot/gossip/store"
)

// serveAs is the child: it serves until its standard input ends.
func serveAs(ctx context.Context, name, dir, socket, profile string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	if profile != "" {
		f, err := os.Create(profile)
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	switch name {
	case "moot":
		return serveMoot(ctx, dir, socket)
	case "etcd":
		return serveEtcd(ctx, dir, socket)
	}
	return fmt.Errorf("there is no server %q", name)
}

func serveMoot(ctx context.Context, dir, socket string) error {
	s, err := store.Open(store.DefaultConfig(dir))
	if err != nil {
		return err
	}
	cfg := etcd.DefaultConfig()
	cfg.Socket, cfg.Store, cfg.Log = socket, s, slog.New(slog.DiscardHandler)
	server, err := etcd.New(cfg)
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return s.Run(ctx) })
	group.Go(func() error { return server.Run(ctx) })
	group.Go(func() error {
		select {
		case <-server.Ready():
			fmt.Println("ready")
		case <-ctx.Done():
		}
		return nil
	})
	return errors.Join(group.Wait(), s.Close())
}

func serveEtcd(ctx context.Context, dir, socket string) error {
	cfg := embed.NewConfig()
	cfg.Dir = dir
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	client := url.URL{Scheme: "unix", Path: socket}
	peer := url.URL{Scheme: "unix", Path: socket + "p"}
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	cfg.QuotaBackendBytes = 8 << 30
	server, err := embed.StartEtcd(cfg)
	if err != nil {
		return err
	}
	defer server.Close()
	select {
	case <-server.Server.ReadyNotify():
		fmt.Println("ready")
	case <-ctx.Done():
		return nil
	}
	select {
	case err := <-server.Err():
		return err
	case <-ctx.Done():
		return nil
	}
}

// server is a running child.
type server struct {
	name   string
	socket string
	cmd    *exec.Cmd
	stdin  io.Closer
}

// start starts this program again as a server and waits until it is ready.
func start(ctx context.Context, name string, s settings) (*server, error) {
	dir, err := filepath.Abs(filepath.Join(s.dir, name))
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	sockets, err := os.MkdirTemp("", "b")
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	v := &server{name: name, socket: filepath.Join(sockets, "s")}
	args := []string{"-serve", name, "-dir", filepath.Join(dir, "data"), "-socket", v.socket}
	if name == "moot" && s.profile != "" {
		args = append(args, "-profile", s.profile)
	}
	v.cmd = exec.CommandContext(ctx, self, args...)
	v.cmd.Stderr = os.Stderr
	if v.stdin, err = v.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	stdout, err := v.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := v.cmd.Start(); err != nil {
		return nil, err
	}
	if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil || line != "ready\n" {
		return nil, errors.Join(fmt.Errorf("start %s: it said %q", name, line), v.stop())
	}
	return v, nil
}

func (v *server) stop() error {
	err := errors.Join(v.stdin.Close(), v.cmd.Wait(), os.RemoveAll(filepath.Dir(v.socket)))
	if err != nil {
		return fmt.Errorf("stop %s: %w", v.name, err)
	}
	return nil
}

// cpu returns the processor time the server has used.
func (v *server) cpu() (time.Duration, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", v.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	// The fields after the command's name, which may hold anything but ")".
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	const userTime, systemTime, ticks = 11, 12, 100 // ticks a second, on every Linux Go runs on
	total := 0
	for _, i := range []int{userTime, systemTime} {
		n, err := strconv.Atoi(fields[i])
		if err != nil {
			return 0, err
		}
		total += n
	}
	return time.Duration(total) * time.Second / ticks, nil
}

// residentMB returns how much memory the server holds.
func (v *server) residentMB() (int, error) {
	statm, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", v.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	pages, err := strconv.Atoi(strings.Fields(string(statm))[1])
	return pages * syscall.Getpagesize() >> 20, err
}
