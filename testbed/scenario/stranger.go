package scenario

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	mrand "math/rand/v2"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

const port = "7443" // Moot's own, on every node

// Stranger attacks the port of one node from beside the cluster for a while:
// garbage over TCP and UDP, TLS without a certificate and with one of a
// stranger's making, silence, and the cluster's own packets once more. The
// cluster must not notice, and the node not say much of it.
func (b *Bed) Stranger(ctx context.Context, victim string, d time.Duration, scan bool) error {
	leader, err := b.OneLeader(ctx, b.Nodes)
	if err != nil {
		return err
	}
	before, err := b.vitals(ctx, victim)
	if err != nil {
		return err
	}
	addr, err := b.Addr(victim)
	if err != nil {
		return err
	}
	if scan {
		if err := b.scan(ctx, addr.String()); err != nil {
			return err
		}
	}
	began := time.Now()
	counts, err := b.attack(ctx, victim, net.JoinHostPort(addr.String(), port), d)
	if err != nil {
		return err
	}
	took := time.Since(began)
	if err := b.WaitWhole(ctx, b.Nodes); err != nil {
		return err
	}
	if now, err := b.OneLeader(ctx, b.Nodes); err != nil || now != leader {
		return fmt.Errorf("the leader was %s, is %s, %w", leader, now, err)
	}
	after, err := b.calm(ctx, victim, before)
	if err != nil {
		return err
	}
	b.Printf("attack on %s for %s: %s", victim, seconds(took), counts)
	b.Printf("the daemon is the same; open files %d before, %d after; memory %d MB before, %d MB after", before.files, after.files, before.rss>>20, after.rss>>20)
	lines := after.lines - before.lines
	b.Printf("refused, by its own count: %d connections, %d packets; log lines: %d in %s", after.strangers-before.strangers, after.packets-before.packets, lines, seconds(took))
	if after.strangers == before.strangers || after.packets == before.packets {
		return errors.New("it counts no refused connections or no refused packets")
	}
	const kinds = 5
	if bound := kinds * (int(time.Since(began).Seconds()) + 2); lines > bound {
		return fmt.Errorf("%d log lines, %d would be one a second of each of %d kinds", lines, bound, kinds)
	}
	_, err = b.SameDigest(ctx, b.Nodes)
	return err
}

// Words of the log lines that strangers cause.
var aboutStrangers = []string{"refused", "did not join", "handshake", "shake hands", "memberlist", "serf", "panic"}

// vitals are what an attack might change on a node.
type vitals struct {
	pid, files, lines  int
	rss                uint64
	strangers, packets uint64
}

func (b *Bed) vitals(ctx context.Context, node string) (vitals, error) {
	var v vitals
	st, err := b.Status(ctx)
	if err != nil {
		return v, err
	}
	for _, n := range st.Nodes {
		if n.Name == node {
			v.pid = n.PID
		}
	}
	if v.pid == 0 {
		return v, fmt.Errorf("the daemon of %s does not run", node)
	}
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", v.pid))
	if err != nil {
		return v, err
	}
	v.files = len(files)
	statm, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", v.pid))
	if err != nil {
		return v, err
	}
	var size uint64
	if _, err := fmt.Sscan(string(statm), &size, &v.rss); err != nil {
		return v, err
	}
	v.rss *= uint64(os.Getpagesize())
	var log bytes.Buffer
	if err := b.Logs(ctx, node, &log, false); err != nil {
		return v, err
	}
	for line := range strings.Lines(log.String()) {
		if slices.ContainsFunc(aboutStrangers, func(word string) bool { return strings.Contains(line, word) }) {
			v.lines++
		}
	}
	m, err := b.Membership(ctx, node)
	v.strangers, v.packets = m.Refused.Strangers, m.Refused.Packets
	return v, err
}

// calm waits until the node holds hardly more open files than before.
func (b *Bed) calm(ctx context.Context, node string, before vitals) (vitals, error) {
	var now vitals
	err := b.eventually(ctx, node+" lets go of what strangers opened", func(ctx context.Context) error {
		var err error
		if now, err = b.vitals(ctx, node); err != nil {
			return err
		}
		if now.pid != before.pid {
			return fmt.Errorf("the daemon was process %d, is %d", before.pid, now.pid)
		}
		if now.files > before.files+20 {
			return fmt.Errorf("%d open files, %d before", now.files, before.files)
		}
		return nil
	})
	return now, err
}

// scan looks at every TCP port of a node. What answers must be known.
func (b *Bed) scan(ctx context.Context, addr string) error {
	known := map[int]string{6443: "API", 7443: "Moot", 10250: "kubelet", 10256: "kube-proxy's health"}
	found := make(chan int, 65536)
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(64)
	for p := 1; p < 65536; p++ {
		g.Go(func() error {
			one, cancel := context.WithTimeout(gctx, 5*time.Second)
			defer cancel()
			conn, err := b.Dial(one, "", "tcp", net.JoinHostPort(addr, fmt.Sprint(p)))
			if err != nil {
				return gctx.Err() // refused, as it should be
			}
			found <- p
			return conn.Close()
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	close(found)
	var open []int
	var unknown []int
	for p := range found {
		open = append(open, p)
		if known[p] == "" {
			unknown = append(unknown, p)
		}
	}
	slices.Sort(open)
	b.Printf("port scan of %s: %v answer", addr, open)
	if len(unknown) > 0 {
		return fmt.Errorf("ports that nobody should offer: %v", unknown)
	}
	return nil
}

// attackCounts say what was thrown at the port.
type attackCounts struct{ garbage, handshakes, silent, datagrams, replayed int }

func (c attackCounts) String() string {
	return fmt.Sprintf("%d connections with garbage, %d TLS handshakes, %d silent connections, %d datagrams, %d packets replayed",
		c.garbage, c.handshakes, c.silent, c.datagrams, c.replayed)
}

func (b *Bed) attack(ctx context.Context, victim, addr string, d time.Duration) (attackCounts, error) {
	var counts attackCounts
	var silent []net.Conn
	defer func() {
		for _, conn := range silent {
			_ = conn.Close()
		}
	}()
	for range 30 {
		conn, err := b.Dial(ctx, "", "tcp", addr)
		if err != nil {
			return counts, err
		}
		silent = append(silent, conn)
	}
	counts.silent = len(silent)
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	g, gctx := errgroup.WithContext(context.WithoutCancel(ctx))
	g.Go(func() error { return b.throwGarbage(ctx, gctx, addr, &counts.garbage) })
	g.Go(func() error { return b.throwHandshakes(ctx, gctx, addr, &counts.handshakes) })
	g.Go(func() error { return b.throwDatagrams(ctx, gctx, addr, &counts.datagrams) })
	g.Go(func() error {
		n, err := b.replay(ctx, victim)
		counts.replayed = n
		return err
	})
	err := g.Wait()
	return counts, err
}

// until calls do again and again until the time is over or the others fail. What do
// begins before it is over may take longer: a deadline fails what is under way
// before its context says that it is over.
func until(ctx, others context.Context, do func(i int) error) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for i := 0; ; i++ {
		if err := do(i); err != nil && ctx.Err() == nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		case <-others.Done():
			return nil
		}
	}
}

// throwGarbage connects, says something that is no TLS, and looks at the
// answer: an alert at most.
func (b *Bed) throwGarbage(ctx, others context.Context, addr string, count *int) error {
	rnd := mrand.New(mrand.NewPCG(1, 2))
	words := [][]byte{
		[]byte("GET / HTTP/1.1\r\nHost: moot\r\n\r\n"), []byte("SSH-2.0-x\r\n"), []byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
		{0}, {13, 0xff, 0xff, 0xff, 0xff}, {244, 255}, {0x16, 0x03, 0x01, 0xff, 0xff}, {0x16, 0x03, 0x01, 0, 0}, nil,
	}
	return until(ctx, others, func(i int) error {
		conn, err := b.Dial(others, "", "tcp", addr)
		if err != nil {
			return fmt.Errorf("connect to %s: %w", addr, err)
		}
		defer func() { _ = conn.Close() }()
		*count++
		word := words[i%len(words)]
		if i%2 == 1 {
			more := make([]byte, rnd.IntN(16<<10))
			for j := range more {
				more[j] = byte(rnd.Uint32())
			}
			word = slices.Concat(word, more)
		}
		_ = conn.SetDeadline(time.Now().Add(200 * time.Millisecond))
		_, _ = conn.Write(word)
		answer, _ := io.ReadAll(io.LimitReader(conn, 4096))
		if len(answer) > 7 || len(answer) > 0 && answer[0] != 0x15 {
			return fmt.Errorf("to %q... it answers %q", word[:min(len(word), 20)], answer)
		}
		return nil
	})
}

// throwHandshakes speaks TLS, by every protocol, with no certificate and with
// one of its own. Where a handshake may succeed, nothing may follow.
func (b *Bed) throwHandshakes(ctx, others context.Context, addr string, count *int) error {
	own, err := selfSigned("n1", x509.ExtKeyUsageClientAuth)
	if err != nil {
		return err
	}
	protocols := []string{"", "moot-gossip", "moot-store", "moot-join", "h2", "http/1.1"}
	return until(ctx, others, func(i int) error {
		raw, err := b.Dial(others, "", "tcp", addr)
		if err != nil {
			return fmt.Errorf("connect to %s: %w", addr, err)
		}
		defer func() { _ = raw.Close() }()
		*count++
		_ = raw.SetDeadline(time.Now().Add(300 * time.Millisecond))
		config := &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12}
		protocol := protocols[i%len(protocols)]
		if protocol != "" {
			config.NextProtos = []string{protocol}
		}
		if i/len(protocols)%2 == 1 {
			config.Certificates = []tls.Certificate{own}
		}
		conn := tls.Client(raw, config)
		if conn.HandshakeContext(ctx) != nil {
			return nil // refused
		}
		_, _ = conn.Write([]byte("\x00\x00\x00\x10{\"token\":\"guess\"}\nGET / HTTP/1.0\r\n\r\n"))
		answer, _ := io.ReadAll(io.LimitReader(conn, 64<<10))
		if len(answer) > 0 && protocol != "moot-join" || bytes.Contains(answer, []byte("PRIVATE")) {
			return fmt.Errorf("by %q a stranger is answered %q", protocol, answer)
		}
		return nil
	})
}

// throwDatagrams sends noise of every length, by turns with the first byte of
// a packet that is not encrypted.
func (b *Bed) throwDatagrams(ctx, others context.Context, addr string, count *int) error {
	conn, err := b.Dial(ctx, "", "udp", addr)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	rnd := mrand.New(mrand.NewPCG(3, 4))
	buf := make([]byte, 1472)
	return until(ctx, others, func(i int) error {
		for j := range buf {
			buf[j] = byte(rnd.Uint32())
		}
		if i%2 == 0 {
			buf[0] = byte(i / 2 % 16)
		}
		if _, err := conn.Write(buf[:rnd.IntN(len(buf)+1)]); err != nil {
			return fmt.Errorf("send to %s: %w", addr, err)
		}
		*count++
		return nil
	})
}

// JoinRefused tries, from a node whose daemon is down, to join with a token
// that is none, one of another secret, one that was revoked and one of another
// cluster, and says how each is refused. Of the last, which is not sent to the
// member, the member's log tells as well.
func (b *Bed) JoinRefused(ctx context.Context, from, to string) error {
	addr, err := b.Addr(to)
	if err != nil {
		return err
	}
	own, err := b.Addr(from)
	if err != nil {
		return err
	}
	good, err := b.on(ctx, to, nil, "moot", "token", "create")
	if err != nil {
		return err
	}
	revoked, err := b.on(ctx, to, nil, "moot", "token", "create")
	if err != nil {
		return err
	}
	if _, err := b.on(ctx, to, nil, "moot", "token", "revoke", revoked); err != nil {
		return err
	}
	parts := strings.Split(good, ".") // prefix, pin of the cluster, ID, secret
	if len(parts) != 4 {
		return fmt.Errorf("a token has %d parts", len(parts))
	}
	for what, token := range map[string]string{
		"no token at all":         "nonsense",
		"a wrong secret":          strings.Join([]string{parts[0], parts[1], parts[2], otherHex(parts[3])}, "."),
		"another cluster's token": strings.Join([]string{parts[0], otherHex(parts[1]), parts[2], parts[3]}, "."),
		"a revoked token":         revoked,
	} {
		began := time.Now()
		one, cancel := context.WithTimeout(ctx, time.Minute)
		out, err := b.on(one, from, []string{"MOOT_TOKEN=" + token}, "moot", "up", "--data-dir", "/tmp/stranger", "--state-dir", "/run/stranger",
			"--node-name", "stranger", "--node-ip", own.String(), "--join", net.JoinHostPort(addr.String(), port))
		cancel()
		if err == nil || ctx.Err() != nil || one.Err() != nil && strings.Contains(err.Error(), "deadline") {
			return fmt.Errorf("join with %s: not refused: %s, %w", what, out, err)
		}
		lines := strings.Split(strings.TrimSpace(err.Error()), "\n")
		if strings.Contains(err.Error(), token) {
			return fmt.Errorf("join with %s: the token is in the answer: %w", what, err)
		}
		b.Printf("join with %s, refused after %s: %s", what, seconds(time.Since(began)), lines[len(lines)-1])
	}
	var log strings.Builder
	if err := b.Logs(ctx, to, &log, false); err != nil {
		return err
	}
	if !strings.Contains(log.String(), "token of another cluster") {
		return fmt.Errorf("the log of %s does not tell of another cluster's token", to)
	}
	m, err := b.Membership(ctx, to)
	if err != nil {
		return err
	}
	for _, x := range m.Members {
		if x.Name == "stranger" {
			return fmt.Errorf("the stranger is a member: %+v", m.Members)
		}
	}
	return nil
}

// otherHex is text with its last digits changed.
func otherHex(text string) string {
	const changed = 6
	return text[:len(text)-changed] + strings.Map(func(r rune) rune {
		if r == 'a' {
			return 'b'
		}
		return 'a'
	}, text[len(text)-changed:])
}
