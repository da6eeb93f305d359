package gossip

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/mootkube/moot/gossip/crdt"
)

// What members tell each other in serf's tags. All of it together is at most
// 512 bytes.
const (
	tagNumber  = "n"
	tagOrigin  = "o"
	tagBirth   = "b"
	tagAPI     = "a"
	tagVersion = "v"
	tagRestart = "r" // Unix milliseconds at which an announced restart is over
	tagLeaving = "l"
	tagNoPods  = "p" // it does not look after pods
)

// card is what a member's tags say.
type card struct {
	number  crdt.NodeNumber
	origin  crdt.Origin
	birth   crdt.Stamp
	api     netip.AddrPort
	version string
	restart time.Time
	leaving bool
	noPods  bool
}

func (c card) tags() map[string]string {
	t := map[string]string{
		tagNumber:  strconv.FormatUint(uint64(c.number), 36),
		tagOrigin:  strconv.FormatUint(uint64(c.origin), 36),
		tagBirth:   strconv.FormatUint(uint64(c.birth), 36),
		tagVersion: c.version,
	}
	if c.api.IsValid() {
		t[tagAPI] = c.api.String()
	}
	if !c.restart.IsZero() {
		t[tagRestart] = strconv.FormatInt(c.restart.UnixMilli(), 36)
	}
	if c.leaving {
		t[tagLeaving] = "1"
	}
	if c.noPods {
		t[tagNoPods] = "1"
	}
	return t
}

// readCard reads a member's tags. What is missing or malformed is left zero.
func readCard(tags map[string]string) card {
	number := func(key string, bits int) uint64 {
		u, err := strconv.ParseUint(tags[key], 36, bits)
		if err != nil {
			return 0
		}
		return u
	}
	c := card{
		number:  crdt.NodeNumber(number(tagNumber, 16)), //nolint:gosec // parsed as 16 bits
		origin:  crdt.Origin(number(tagOrigin, 64)),
		birth:   crdt.Stamp(number(tagBirth, 64)),
		version: tags[tagVersion],
		leaving: tags[tagLeaving] != "",
		noPods:  tags[tagNoPods] != "",
	}
	if api, err := netip.ParseAddrPort(tags[tagAPI]); err == nil {
		c.api = api
	}
	if ms, err := strconv.ParseInt(tags[tagRestart], 36, 64); err == nil {
		c.restart = time.UnixMilli(ms)
	}
	return c
}

// compatible says why a member of version theirs cannot be in one cluster with
// one of version ours, nil when it can: the major versions must agree.
func compatible(ours, theirs string) error {
	if o, t := major(ours), major(theirs); o != t {
		return fmt.Errorf("version %q is not compatible with %q", theirs, ours)
	}
	return nil
}

func major(version string) string {
	m, _, _ := strings.Cut(strings.TrimPrefix(version, "v"), ".")
	return m
}
