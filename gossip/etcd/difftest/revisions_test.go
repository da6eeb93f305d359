package difftest

import (
	"fmt"
	"slices"
)

// revisions maps our revisions to etcd's.
type revisions struct {
	ours, etcd []int64 // newest of each side after each operation that changed something
}

// note records the newest revisions after an operation.
func (r *revisions) note(ours, etcd int64) error {
	if len(r.ours) == 0 {
		r.ours, r.etcd = []int64{ours}, []int64{etcd}
		return nil
	}
	lastOurs, lastEtcd := r.last()
	switch {
	case ours == lastOurs && etcd == lastEtcd:
		return nil
	case ours > lastOurs && etcd == lastEtcd+1:
		r.ours, r.etcd = append(r.ours, ours), append(r.etcd, etcd)
		return nil
	}
	return fmt.Errorf("newest revisions went from %d to %d here, from %d to %d in etcd", lastOurs, ours, lastEtcd, etcd)
}

func (r *revisions) last() (ours, etcd int64) {
	n := len(r.ours) - 1
	return r.ours[n], r.etcd[n]
}

// toEtcd returns what one of our revisions stands for, -1 for one that never was.
func (r *revisions) toEtcd(ours int64) int64 {
	if ours == 0 {
		return 0
	}
	i, _ := slices.BinarySearch(r.ours, ours)
	if i == len(r.ours) || i == 0 && ours != r.ours[0] {
		return -1
	}
	return r.etcd[i]
}
