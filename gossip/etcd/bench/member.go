package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"runtime/debug"
	"runtime/pprof"
	"strings"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/mootkube/moot/gossip"
	"github.com/mootkube/moot/gossip/crdt"
	"github.com/mootkube/moot/gossip/etcd"
	"github.com/mootkube/moot/gossip/store"
)

// member is what a child serves: one member of a side, the only one when there
// are no peers.
type member struct {
	side    string
	number  int    // from 1
	dir     string // of its own; the files of its identity are in it
	socket  string
	profile string
	peers   []netip.AddrPort // of all members, itself among them
}

func (m member) addr() netip.AddrPort { return m.peers[m.number-1] }

func memberName(number int) string { return fmt.Sprintf("m%d", number) }

// serve is the child: it serves until its standard input ends.
func (m member) serve(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	if m.profile != "" {
		f, err := os.Create(m.profile)
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	switch m.side {
	case "moot":
		return m.serveMoot(ctx)
	case "etcd":
		return m.serveEtcd(ctx)
	case "floor":
		return m.serveFloor(ctx)
	}
	return fmt.Errorf("there is no server %q", m.side)
}

// gcPercent is what the daemon sets while it is busy, see cmd/moot; etcd leaves it
// at Go's 100.
const gcPercent = 200

func (m member) serveMoot(ctx context.Context) error {
	debug.SetGCPercent(gcPercent)
	cfg := store.DefaultConfig(filepath.Join(m.dir, "data"))
	cfg.Node = crdt.NodeNumber(m.number) //nolint:gosec // few members
	var agent *gossip.Agent
	if len(m.peers) > 0 {
		cfg.Hold = func(rev int64, release func()) { agent.Hold(rev, release) }
	}
	s, err := store.Open(cfg)
	if err != nil {
		return err
	}
	serving := etcd.DefaultConfig()
	serving.Socket, serving.Store, serving.Log = m.socket, s, slog.New(slog.DiscardHandler)
	server, err := etcd.New(serving)
	if err != nil {
		return errors.Join(err, s.Close())
	}
	if len(m.peers) > 0 {
		if agent, err = m.agent(s); err != nil {
			return errors.Join(err, s.Close())
		}
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return s.Run(ctx) })
	group.Go(func() error { return server.Run(ctx) })
	if agent != nil {
		group.Go(func() error { return agent.Run(ctx) })
	}
	group.Go(func() error {
		select {
		case <-server.Ready():
		case <-ctx.Done():
			return nil
		}
		if agent == nil || connected(ctx, agent, len(m.peers)) {
			fmt.Println("ready")
		}
		return nil
	})
	err = group.Wait()
	if agent != nil {
		acks := agent.Status().Acks
		fmt.Printf("%d batches of writes were answered once a peer had them on disk, %d after waiting for none, %d after waiting in vain\n", acks.Peer, acks.Alone, acks.TimedOut)
	}
	return errors.Join(err, s.Close())
}

// agent returns this member's part in a cluster on loopback.
func (m member) agent(s *store.Store) (*gossip.Agent, error) {
	cert, err := tls.LoadX509KeyPair(filepath.Join(m.dir, certFile), filepath.Join(m.dir, keyFile))
	if err != nil {
		return nil, err
	}
	authority, err := os.ReadFile(filepath.Join(m.dir, authorityFile))
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(authority)
	cfg := gossip.DefaultConfig()
	cfg.Name, cfg.Number = memberName(m.number), crdt.NodeNumber(m.number) //nolint:gosec // few members
	cfg.Birth, cfg.Cluster, cfg.Version = crdt.StampAt(time.Now()), "bench", "v1.0.0"
	cfg.Bind, cfg.Seeds = m.addr(), func() []netip.AddrPort { return m.peers }
	cfg.Identity = func() (*tls.Certificate, *x509.CertPool, error) { return &cert, pool, nil }
	cfg.Keys = [][]byte{make([]byte, 32)} // a secret to nobody, on loopback for a minute
	cfg.Store = gossip.Replicate(s)
	return gossip.New(cfg)
}

// connected waits until count members all tail each other.
func connected(ctx context.Context, agent *gossip.Agent, count int) bool {
	select {
	case <-agent.Ready():
	case <-ctx.Done():
		return false
	}
	agent.Serving()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		streams := 0
		for _, m := range agent.Status().Members {
			if m.Follows && m.Followed {
				streams++
			}
		}
		if streams == count-1 {
			return true
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return false
		}
	}
}

func (m member) serveEtcd(ctx context.Context) error {
	cfg := embed.NewConfig()
	cfg.Dir = filepath.Join(m.dir, "data")
	cfg.Name = memberName(m.number)
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	client := url.URL{Scheme: "unix", Path: m.socket}
	peer := url.URL{Scheme: "unix", Path: m.socket + "p"}
	cfg.InitialCluster = cfg.Name + "=" + peer.String()
	if len(m.peers) > 0 {
		peer = url.URL{Scheme: "https", Host: m.addr().String()}
		cfg.PeerAutoTLS = true
		var all []string
		for i, p := range m.peers {
			all = append(all, fmt.Sprintf("%s=https://%s", memberName(i+1), p))
		}
		cfg.InitialCluster = strings.Join(all, ",")
	}
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
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
