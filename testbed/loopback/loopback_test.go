package loopback_test

import (
	"io"
	"net"
	"net/netip"
	"testing"

	"github.com/mootkube/moot/testbed/loopback"
)

func TestAddr(t *testing.T) {
	first := loopback.Addr(t)
	if second := loopback.Addr(t); second == first {
		t.Errorf("%v was given twice", first)
	}
	var given any
	t.Run("of a test that ended", func(t *testing.T) { given = loopback.Addr(t) })
	if again := loopback.Addr(t); again != given {
		t.Errorf("%v, though %v is free again", again, given)
	}
}

func TestAddrLeavesOutWhatIsListenedOn(t *testing.T) {
	for network, listen := range map[string]func(addr string) (io.Closer, error){
		"tcp": func(addr string) (io.Closer, error) { return net.Listen("tcp", addr) },       //nolint:noctx // returns at once
		"udp": func(addr string) (io.Closer, error) { return net.ListenPacket("udp", addr) }, //nolint:noctx // returns at once
	} {
		var freed netip.AddrPort
		t.Run("claimed by nobody", func(t *testing.T) { freed = loopback.Addr(t) })
		l, err := listen(freed.String())
		if err != nil {
			t.Fatal(err)
		}
		if got := loopback.Addr(t); got == freed {
			t.Errorf("%v has a listener for %s", got, network)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
