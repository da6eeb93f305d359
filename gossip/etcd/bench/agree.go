package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

const agreeWait = time.Minute

// agree waits until all members of a side hold the same objects: what is fast
// has to be right, too.
func (v *server) agree(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, agreeWait)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		sums := make(map[[sha256.Size]byte]bool)
		for _, p := range v.members {
			sum, err := contents(ctx, p.socket)
			if err != nil {
				return fmt.Errorf("compare the members of %s: %w", v.name, err)
			}
			sums[sum] = true
		}
		if len(sums) == 1 {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("the members of %s differ after %v", v.name, agreeWait)
		}
	}
}

// contents returns a hash of all keys and values that a member itself holds.
func contents(ctx context.Context, socket string) (sum [sha256.Size]byte, err error) {
	conn, err := dial(socket)
	if err != nil {
		return sum, err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	hash := sha256.New()
	for _, prefix := range []string{writePrefix, listPrefix} {
		from := []byte(prefix)
		for {
			r, err := pb.NewKVClient(conn).Range(ctx, &pb.RangeRequest{Key: from, RangeEnd: prefixEnd(prefix), Limit: page, Serializable: true})
			if err != nil {
				return sum, err
			}
			for _, kv := range r.Kvs {
				_, _ = fmt.Fprintf(hash, "%d %s %d ", len(kv.Key), kv.Key, len(kv.Value))
				_, _ = hash.Write(kv.Value)
			}
			if !r.More {
				break
			}
			from = append(r.Kvs[len(r.Kvs)-1].Key, 0)
		}
	}
	hash.Sum(sum[:0])
	return sum, nil
}
