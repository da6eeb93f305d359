package ebpf

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"
)

// What the node itself asks from a port that is a frontend's, as the kernel may
// choose for it where its range of ports is wide, is answered to it.
func TestAnswersToTheNodeAreNoClients(t *testing.T) {
	l := newLab(t, false)
	l.servers("out")
	p := l.open(false, false, nil)
	defer l.close(p)
	for family, name := range families {
		to := net.JoinHostPort(addrOf["out"][family], "8080")
		from := netip.AddrPortFrom(netip.MustParseAddr(addrOf["a"][family]), nodePort)
		for i, proto := range []Protocol{TCP, UDP} {
			id := uint32(2*family + i + 1)
			serve(t, p, Frontend{anyAddr(family), proto, Outside}, Service{Drop: true}, id, id)
		}
		for network, local := range map[string]net.Addr{"tcp": net.TCPAddrFromAddrPort(from), "udp": net.UDPAddrFromAddrPort(from)} {
			err := l.do("a", func() error {
				conn, err := (&net.Dialer{LocalAddr: local, Timeout: 2 * time.Second}).Dial(network, to)
				if err != nil {
					return err
				}
				err = conn.SetDeadline(time.Now().Add(2 * time.Second))
				if err == nil {
					_, err = io.WriteString(conn, "words")
				}
				if err == nil {
					_, err = conn.Read(make([]byte, 100))
				}
				return errors.Join(err, conn.Close())
			})
			if err != nil {
				t.Errorf("%s %s: %v", name, network, err)
			}
		}
	}
}
