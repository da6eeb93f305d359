package crdt

import (
	"errors"
	"fmt"
	"time"
)

// stampLogicalBits is the share of a stamp that counts events within one
// microsecond. It overflows into the microseconds, which keeps the order.
const stampLogicalBits = 12

// Stamp is a reading of a hybrid logical clock: microseconds since the Unix
// epoch in the high 52 bits, a counter in the low 12. Comparing stamps as
// integers orders them. See Kulkarni et al., "Logical Physical Clocks and
// Consistent Snapshots in Globally Distributed Databases", 2014.
type Stamp uint64

// StampAt returns the first stamp of the microsecond of t.
func StampAt(t time.Time) Stamp {
	us := t.UnixMicro()
	if us < 0 {
		return 0
	}
	return Stamp(us) << stampLogicalBits
}

// Time returns the stamp's physical part.
func (s Stamp) Time() time.Time { return time.UnixMicro(int64(s >> stampLogicalBits)) }

// String returns the physical time and the counter.
func (s Stamp) String() string {
	return fmt.Sprintf("%s+%d", s.Time().UTC().Format("2006-01-02T15:04:05.000000Z"), s&(1<<stampLogicalBits-1))
}

// ErrDrift reports a stamp further ahead of the local clock than allowed.
var ErrDrift = errors.New("clock stamp is too far ahead of the local clock")

// Clock is a hybrid logical clock as a value: the highest stamp it has issued
// or seen. Its methods return the clock that follows. The zero Clock has seen
// nothing.
type Clock struct {
	High Stamp
}

// Tick returns the stamp of a local event at now and the clock after it. The
// stamp is above every stamp the clock issued or saw, also when now went back.
func (c Clock) Tick(now time.Time) (Clock, Stamp) {
	s := max(StampAt(now), c.High+1)
	return Clock{High: s}, s
}

// Observe returns the clock after it has seen a remote stamp. A stamp more
// than maxDrift ahead of now is refused with [ErrDrift] and changes nothing:
// one wrong clock must not carry the others away.
func (c Clock) Observe(now time.Time, remote Stamp, maxDrift time.Duration) (Clock, error) {
	if remote > StampAt(now.Add(maxDrift)) {
		return c, fmt.Errorf("observe stamp %s at %s: %w", remote, now.UTC().Format(time.RFC3339Nano), ErrDrift)
	}
	return Clock{High: max(c.High, remote)}, nil
}

// Ahead returns how far the clock runs ahead of now, 0 when it does not.
func (c Clock) Ahead(now time.Time) time.Duration {
	return max(0, c.High.Time().Sub(now))
}
