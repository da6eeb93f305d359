package ebpf

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const (
	podPort  = 8080
	nodePort = 30080
	patience = 20 * time.Second
)

// servers starts a TCP and a UDP server of each family in the namespace: each
// tells its name and whom it sees, TCP then echoes.
func (l *lab) servers(ns string) {
	for family := range families {
		at := net.JoinHostPort(addrOf[ns][family], fmt.Sprint(podPort))
		var tcp net.Listener
		var udp net.PacketConn
		err := l.do(ns, func() (err error) {
			if tcp, err = net.Listen("tcp", at); err != nil {
				return err
			}
			udp, err = net.ListenPacket("udp", at)
			return err
		})
		if err != nil {
			l.t.Fatal(err)
		}
		l.t.Cleanup(func() { _, _ = tcp.Close(), udp.Close() })
		go func() {
			for {
				conn, err := tcp.Accept()
				if err != nil {
					return
				}
				go func() {
					defer func() { _ = conn.Close() }()
					_, _ = fmt.Fprintf(conn, "%s %s\n", ns, conn.RemoteAddr())
					_, _ = io.Copy(conn, conn)
				}()
			}
		}()
		go func() {
			buf := make([]byte, 65536)
			for {
				n, from, err := udp.ReadFrom(buf)
				if err != nil {
					return
				}
				_, _ = udp.WriteTo([]byte(fmt.Sprintf("%s %s %s", ns, from, buf[:n])), from)
			}
		}()
	}
}

func (l *lab) dial(network string, to netip.AddrPort) (conn net.Conn, err error) {
	err = l.do("out", func() error {
		conn, err = (&net.Dialer{Timeout: patience}).Dial(network, to.String())
		return err
	})
	if err == nil {
		err = conn.SetDeadline(time.Now().Add(patience))
	}
	return conn, err
}

// hello connects and returns who answered and whom it saw.
func (l *lab) hello(to netip.AddrPort) (conn net.Conn, r *bufio.Reader, who, client string, err error) {
	conn, err = l.dial("tcp", to)
	if err != nil {
		return nil, nil, "", "", err
	}
	r = bufio.NewReader(conn)
	if _, err = fmt.Fscan(r, &who, &client); err == nil {
		_, err = r.ReadByte()
	}
	return conn, r, who, client, err
}

// ask sends a datagram until there is an answer, as UDP clients do.
func ask(conn net.Conn, text string) (who string, err error) {
	buf := make([]byte, 65536)
	for range 5 {
		if _, err = conn.Write([]byte(text)); err != nil {
			return "", err
		}
		if err = conn.SetReadDeadline(time.Now().Add(patience / 5)); err != nil {
			return "", err
		}
		n, err := conn.Read(buf)
		if errors.Is(err, syscall.ECONNREFUSED) {
			return "", err
		}
		if err != nil {
			continue
		}
		words := strings.SplitN(string(buf[:n]), " ", 3)
		if len(words) != 3 || words[2] != text {
			return "", fmt.Errorf("answer to %d bytes: %d others", len(text), n)
		}
		return words[0], nil
	}
	return "", errors.New("no answer")
}

// echo sends size random bytes and compares what comes back.
func echo(conn net.Conn, r io.Reader, size int) error {
	want := make([]byte, size)
	src := rand.NewChaCha8([32]byte{byte(size)})
	_, _ = src.Read(want)
	sent := make(chan error, 1)
	go func() {
		_, err := conn.Write(want)
		sent <- err
	}()
	got := make([]byte, size)
	if n, err := io.ReadFull(r, got); err != nil {
		return fmt.Errorf("after %d of %d bytes: %w", n, size, err)
	}
	if !bytes.Equal(got, want) {
		return errors.New("bytes came back changed")
	}
	return <-sent
}

func onPod(ns string, family int) Backend {
	return Backend{
		Addr:  netip.AddrPortFrom(netip.MustParseAddr(addrOf[ns][family]), podPort),
		Local: ns == "poda",
	}
}

// everywhere runs the test with routes and with VXLAN, with tcx and with filters,
// and with XDP beside these.
func everywhere(t *testing.T, f func(t *testing.T, l *lab, p *packets)) {
	for _, overlay := range []bool{false, true} {
		for _, attach := range []string{"tcx", "clsact", "xdp"} {
			t.Run(fmt.Sprintf("overlay=%t,%s", overlay, attach), func(t *testing.T) {
				l := newLab(t, overlay)
				if attach == "xdp" {
					l.likeCards()
				}
				l.servers("poda")
				l.servers("podb")
				p := l.open(attach == "clsact", overlay, nil)
				defer l.close(p)
				f(t, l, p)
			})
		}
	}
}

func TestClientsFromOutsideReachBackends(t *testing.T) {
	everywhere(t, func(t *testing.T, l *lab, p *packets) {
		id := uint32(0)
		for family, name := range families {
			for _, pod := range []string{"poda", "podb"} {
				for target, at := range map[string]netip.AddrPort{
					"NodePort":     netip.AddrPortFrom(netip.MustParseAddr(addrOf["a"][family]), nodePort),
					"LoadBalancer": netip.AddrPortFrom(netip.MustParseAddr(addrOf["lb"][family]), 80),
				} {
					id++
					front := anyAddr(family)
					if target != "NodePort" {
						front = at
					}
					s := Service{Backends: []Backend{onPod(pod, family)}}
					serve(t, p, Frontend{front, TCP, Outside}, s, id, id)
					serve(t, p, Frontend{front, UDP, Outside}, s, id+1000, id+1000)
					t.Run(name+" "+target+" "+pod, func(t *testing.T) {
						conn, r, who, client, err := l.hello(at)
						if err != nil {
							t.Fatal(err)
						}
						defer func() { _ = conn.Close() }()
						kept := client == conn.LocalAddr().String()
						if who != pod || kept != (pod == "poda") {
							t.Errorf("%s answered, which saw %s, of %s", who, client, conn.LocalAddr())
						}
						if err := echo(conn, r, 8<<20); err != nil {
							t.Errorf("large transfer: %v", err)
						}
						u, err := l.dial("udp", at)
						if err != nil {
							t.Fatal(err)
						}
						defer func() { _ = u.Close() }()
						for _, size := range []int{1, 17, 1200} {
							if who, err := ask(u, strings.Repeat("x", size)); err != nil || who != pod {
								t.Errorf("datagram of %d bytes: %s, %v", size, who, err)
							}
						}
					})
				}
			}
		}
	})
}

func TestClientsFromOutsideInParallel(t *testing.T) {
	everywhere(t, func(t *testing.T, l *lab, p *packets) {
		for family, name := range families {
			s := Service{Backends: []Backend{onPod("poda", family), onPod("podb", family)}}
			serve(t, p, Frontend{anyAddr(family), TCP, Outside}, s, uint32(family+1), uint32(family+1))
			at := netip.AddrPortFrom(netip.MustParseAddr(addrOf["a"][family]), nodePort)
			const clients = 200
			var wg sync.WaitGroup
			var mu sync.Mutex
			count := map[string]int{}
			for range clients {
				wg.Go(func() {
					conn, r, who, _, err := l.hello(at)
					if err == nil {
						defer func() { _ = conn.Close() }()
						err = echo(conn, r, 64<<10)
					}
					mu.Lock()
					defer mu.Unlock()
					count[who]++
					if err != nil {
						t.Errorf("%s: %v", name, err)
					}
				})
			}
			wg.Wait()
			chi := 0.0
			for _, pod := range []string{"poda", "podb"} {
				d := float64(count[pod]) - clients/2
				chi += d * d / (clients / 2)
			}
			t.Logf("%s: spread %v, chi-square %.2f (1 degree of freedom, 15.1 is p=0.0001)", name, count, chi)
			if chi > 25 { // p = 6e-7, and ephemeral ports are no random numbers
				t.Errorf("%s: spread %v", name, count)
			}
		}
	})
}

func TestOpenConnectionsOutliveDaemonAndBackendChange(t *testing.T) {
	everywhere(t, func(t *testing.T, l *lab, p *packets) {
		for family, name := range families {
			front := Frontend{anyAddr(family), TCP, Outside}
			at := netip.AddrPortFrom(netip.MustParseAddr(addrOf["a"][family]), nodePort)
			id := uint32(family + 1)
			for i, pod := range []string{"poda", "podb"} {
				other := map[string]string{"poda": "podb", "podb": "poda"}[pod]
				serve(t, p, front, Service{Backends: []Backend{onPod(pod, family)}}, id, id*10+uint32(i)*2)
				conn, r, _, _, err := l.hello(at)
				if err != nil {
					t.Fatal(err)
				}
				done := make(chan error, 1)
				go func() { done <- echo(conn, r, 32<<20) }()
				for range 5 { // in the middle of the transfer
					l.reopen(p)
				}
				serve(t, p, front, Service{Backends: []Backend{onPod(other, family)}}, id, id*10+uint32(i)*2+1)
				again, _, who, _, err := l.hello(at)
				if err != nil || who != other {
					t.Errorf("%s: after the change: %s, %v; want %s", name, who, err, other)
				} else {
					_ = again.Close()
				}
				if err := <-done; err != nil {
					t.Errorf("%s %s: open transfer: %v", name, pod, err)
				}
				gone := onPod(pod, family).Addr
				n, err := p.forget(func(proto Protocol, at netip.AddrPort) bool { return proto == TCP && at == gone })
				if err != nil || n < 1 {
					t.Errorf("%s: %d connections forgotten, %v", name, n, err)
				}
				if err := echo(conn, r, 1); err == nil {
					t.Errorf("%s %s: a connection to a backend that is gone goes on", name, pod)
				} else if !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, io.EOF) && !errors.Is(err, syscall.EPIPE) {
					t.Errorf("%s %s: connection to a backend that is gone: %v, want it reset", name, pod, err)
				}
				_ = conn.Close()
			}
		}
	})
}

func TestNoBackendRefusesAndSourcesAreKept(t *testing.T) {
	everywhere(t, func(t *testing.T, l *lab, p *packets) {
		for family, name := range families {
			at := netip.AddrPortFrom(netip.MustParseAddr(addrOf["a"][family]), nodePort)
			lb := netip.AddrPortFrom(netip.MustParseAddr(addrOf["lb"][family]), 80)
			for i, f := range []netip.AddrPort{at, lb} {
				front := f
				if f == at {
					front = anyAddr(family)
				}
				id := uint32(family*10 + i + 1)
				serve(t, p, Frontend{front, TCP, Outside}, Service{}, id, id)
				serve(t, p, Frontend{front, UDP, Outside}, Service{}, id+100, id+100)
				if conn, err := l.dial("tcp", f); !errors.Is(err, syscall.ECONNREFUSED) {
					t.Errorf("%s %s: TCP without a backend: %v, %v", name, f, conn, err)
				}
				u, err := l.dial("udp", f)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := ask(u, "x"); !errors.Is(err, syscall.ECONNREFUSED) {
					t.Errorf("%s %s: UDP without a backend: %v", name, f, err)
				}
				// It comes back: the same client is served.
				serve(t, p, Frontend{front, UDP, Outside}, Service{Backends: []Backend{onPod("podb", family)}}, id+100, id+200)
				if who, err := ask(u, "x"); err != nil || who != "podb" {
					t.Errorf("%s %s: UDP with a backend again: %s, %v", name, f, who, err)
				}
				_ = u.Close()
			}
			// A backend that listens to nothing: its refusal reaches the client.
			for i, pod := range []string{"poda", "podb"} {
				deaf := onPod(pod, family)
				deaf.Addr = netip.AddrPortFrom(deaf.Addr.Addr(), 9)
				id := uint32(family*10 + i + 500)
				serve(t, p, Frontend{lb, UDP, Outside}, Service{Backends: []Backend{deaf}}, id, id)
				u, err := l.dial("udp", lb)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := ask(u, "x"); !errors.Is(err, syscall.ECONNREFUSED) {
					t.Errorf("%s: ICMP error of %s: %v", name, pod, err)
				}
				_ = u.Close()
			}
			// Sources.
			allowed := netip.PrefixFrom(netip.MustParseAddr(addrOf["out"][family]), 24+family*40)
			other := netip.PrefixFrom(netip.MustParseAddr(addrOf["poda"][family]), 24)
			id := uint32(family + 900)
			s := Service{Backends: []Backend{onPod("poda", family)}, Sources: []netip.Prefix{other.Masked(), allowed.Masked()}}
			serve(t, p, Frontend{lb, UDP, Outside}, s, id, id)
			u, err := l.dial("udp", lb)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := ask(u, "x"); err != nil {
				t.Errorf("%s: a client of an allowed range: %v", name, err)
			}
			_ = u.Close()
		}
	})
}

func TestAffinityOfClientsFromOutside(t *testing.T) {
	everywhere(t, func(t *testing.T, l *lab, p *packets) {
		for family, name := range families {
			at := netip.AddrPortFrom(netip.MustParseAddr(addrOf["a"][family]), nodePort)
			front := Frontend{anyAddr(family), TCP, Outside}
			pods := []Backend{onPod("poda", family), onPod("podb", family)}
			s := Service{Backends: pods, Affinity: time.Hour}
			id := uint32(family + 1)
			serve(t, p, front, s, id, id)
			first := ""
			for range 20 {
				conn, _, who, _, err := l.hello(at)
				if err != nil {
					t.Fatal(err)
				}
				_ = conn.Close()
				if first == "" {
					first = who
				} else if who != first {
					t.Fatalf("%s: %s, then %s", name, first, who)
				}
			}
			left := pods[:1]
			if first == "poda" {
				left = pods[1:]
			}
			s.Backends = left
			serve(t, p, front, s, id, id+10)
			conn, _, who, _, err := l.hello(at)
			if err != nil || who == first {
				t.Fatalf("%s: its backend is gone: %s, %v", name, who, err)
			}
			_ = conn.Close()
			s.Backends = pods // the first is back, but the client stays with the second
			serve(t, p, front, s, id, id+20)
			if conn, _, now, _, err := l.hello(at); err != nil || now != who {
				t.Errorf("%s: %s, %v; want %s", name, now, err, who)
			} else {
				_ = conn.Close()
			}
		}
	})
}

func TestOwnPortsOfTheNodeAreLeftAlone(t *testing.T) {
	everywhere(t, func(t *testing.T, l *lab, p *packets) {
		l.servers("a")
		for family, name := range families {
			serve(t, p, Frontend{anyAddr(family), TCP, Outside}, Service{Drop: true}, 1, 1)
			conn, r, who, client, err := l.hello(netip.AddrPortFrom(netip.MustParseAddr(addrOf["a"][family]), podPort))
			if err != nil {
				t.Fatal(err)
			}
			if err := echo(conn, r, 1<<20); err != nil || who != "a" || client != conn.LocalAddr().String() {
				t.Errorf("%s: %s, %s, %v", name, who, client, err)
			}
			_ = conn.Close()
		}
		n := 0
		var key flowKey
		var f flow
		for it := p.coll.Maps["moot_flows"].Iterate(); it.Next(&key, &f); {
			n++
		}
		if n > 0 {
			t.Errorf("%d connections are kept that are no Service's", n)
		}
	})
}
