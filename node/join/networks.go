package join

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Networks is one network, or one of each address family. The first is the
// family that is used where there is a choice. Two are equal with ==.
type Networks struct{ First, Second netip.Prefix }

// ParseNetworks reads what [Networks.String] writes: "10.42.0.0/16" or
// "10.42.0.0/16,fd42::/48".
func ParseNetworks(text string) (Networks, error) {
	var n Networks
	first, second, two := strings.Cut(text, ",")
	var err error
	if n.First, err = netip.ParsePrefix(strings.TrimSpace(first)); err != nil {
		return Networks{}, fmt.Errorf("parse network %q: %w", first, err)
	}
	if !two {
		return n, nil
	}
	if n.Second, err = netip.ParsePrefix(strings.TrimSpace(second)); err != nil {
		return Networks{}, fmt.Errorf("parse network %q: %w", second, err)
	}
	if n.First.Addr().Is4() == n.Second.Addr().Is4() {
		return Networks{}, errors.New("two networks must be one of IPv4 and one of IPv6")
	}
	return n, nil
}

// IsValid reports whether there is at least one.
func (n Networks) IsValid() bool { return n.First.IsValid() }

// All lists them, the first one first.
func (n Networks) All() []netip.Prefix {
	var all []netip.Prefix
	for _, p := range []netip.Prefix{n.First, n.Second} {
		if p.IsValid() {
			all = append(all, p)
		}
	}
	return all
}

// Contains reports whether an address is in one of them.
func (n Networks) Contains(a netip.Addr) bool { return n.First.Contains(a) || n.Second.Contains(a) }

// Overlaps reports whether some address is in both.
func (n Networks) Overlaps(o Networks) bool {
	for _, a := range n.All() {
		if slices.ContainsFunc(o.All(), a.Overlaps) {
			return true
		}
	}
	return false
}

// String joins them by a comma.
func (n Networks) String() string {
	switch {
	case !n.First.IsValid():
		return ""
	case !n.Second.IsValid():
		return n.First.String()
	default:
		return n.First.String() + "," + n.Second.String()
	}
}

// MarshalText is String: a single network is written as it always was.
func (n Networks) MarshalText() ([]byte, error) { return []byte(n.String()), nil }

// UnmarshalText is ParseNetworks; empty text is none.
func (n *Networks) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		*n = Networks{}
		return nil
	}
	var err error
	*n, err = ParseNetworks(string(text))
	return err
}
