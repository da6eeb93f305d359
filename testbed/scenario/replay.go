package scenario

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// replay listens on a node's port of the bridge for half the time that is left
// and then sends what the cluster's members said over UDP once more, from where
// they said it.
func (b *Bed) replay(ctx context.Context, victim string) (int, error) {
	fd, err := b.Tap(victim)
	if err != nil {
		return 0, err
	}
	defer func() { _ = fd.Close() }()
	end, ok := ctx.Deadline()
	if !ok {
		return 0, errors.New("replay: no end")
	}
	addr, err := b.Addr(victim)
	if err != nil {
		return 0, err
	}
	frames, err := capture(ctx, fd, addr, time.Until(end)/2)
	if err != nil {
		return 0, err
	}
	if len(frames) == 0 {
		return 0, errors.New("replay: no packet of the members was heard")
	}
	sent := 0
	err = until(ctx, context.WithoutCancel(ctx), func(i int) error {
		if _, err := fd.Write(frames[i%len(frames)]); err != nil {
			return fmt.Errorf("replay: %w", err)
		}
		sent++
		return nil
	})
	return sent, err
}

// capture keeps the frames that carry a member's datagram to a node's port,
// some thousands at most.
func capture(ctx context.Context, fd *os.File, to netip.Addr, d time.Duration) ([][]byte, error) {
	var frames [][]byte
	end := time.Now().Add(d)
	buf := make([]byte, 2048)
	for time.Now().Before(end) && len(frames) < 5000 && ctx.Err() == nil {
		if err := fd.SetReadDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
			return nil, fmt.Errorf("replay: %w", err)
		}
		n, err := fd.Read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("replay: %w", err)
		}
		if isOurs(buf[:n], to) {
			frames = append(frames, append([]byte(nil), buf[:n]...))
		}
	}
	return frames, nil
}

// isOurs reports whether an Ethernet frame carries an IPv4 datagram to Moot's
// port of a node.
func isOurs(frame []byte, to netip.Addr) bool {
	const ethernet, ipv4 = 14, 20
	return len(frame) > ethernet+ipv4+8 && binary.BigEndian.Uint16(frame[12:]) == 0x0800 &&
		frame[ethernet] == 0x45 && frame[ethernet+9] == unix.IPPROTO_UDP &&
		[4]byte(frame[ethernet+16:]) == to.As4() &&
		binary.BigEndian.Uint16(frame[ethernet+ipv4+2:]) == 7443
}
