package loopback_test

import (
	"net"
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
	for _, network := range []string{"tcp", "udp"} {
		addr := loopback.Addr(t).String()
		t.Run(network, func(t *testing.T) {
			if network == "tcp" {
				l, err := net.Listen("tcp", addr) //nolint:noctx // returns at once
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = l.Close() }()
			} else {
				l, err := net.ListenPacket("udp", addr) //nolint:noctx // returns at once
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = l.Close() }()
			}
			if got := loopback.Addr(t); got.String() == addr {
				t.Errorf("%v has a listener", got)
			}
		})
	}
}
