package store

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

func BenchmarkPut(b *testing.B) {
	for _, writers := range []int{1, 64} {
		for _, class := range []string{"pods", "events"} {
			b.Run(fmt.Sprintf("writers=%d/%s", writers, class), func(b *testing.B) {
				s, _ := start(b, testConfig(b))
				value := make([]byte, 2000)
				var n atomic.Int64
				b.SetParallelism((writers + 1) / 2)
				b.ReportAllocs()
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						i := n.Add(1)
						key := fmt.Appendf(nil, "/registry/%s/default/object-%d", class, i%1000)
						_, err := s.Txn(b.Context(), Txn{Then: []Op{{Kind: OpPut, Key: key, Value: value}}})
						if err != nil {
							b.Fatal(err)
						}
					}
				})
			})
		}
	}
}

func BenchmarkRange1000(b *testing.B) {
	s, _ := start(b, testConfig(b))
	for i := range 10000 {
		key := fmt.Appendf(nil, "/registry/pods/default/object-%d", i)
		if _, err := s.Txn(b.Context(), Txn{Then: []Op{{Kind: OpPut, Key: key, Value: make([]byte, 2000)}}}); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		res, err := s.Range(b.Context(), RangeRequest{Key: []byte("/registry/pods/"), End: []byte("/registry/pods0"), Limit: 1000})
		if err != nil || len(res.KVs) != 1000 {
			b.Fatal(len(res.KVs), err)
		}
	}
}

// BenchmarkReplicate carries puts from one store to another, frame by frame.
func BenchmarkReplicate(b *testing.B) {
	for _, class := range []string{"pods", "events"} {
		b.Run(class, func(b *testing.B) {
			from, _ := start(b, testConfig(b))
			to, _ := start(b, testConfig(b))
			value := []byte(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"uid":"u"},"data":{"x":"` + strings.Repeat("x", 2000) + `"}}`)
			var group sync.WaitGroup
			for i := range 16 {
				group.Go(func() {
					for n := i; n < b.N; n += 16 {
						put(b, from, fmt.Sprintf("/registry/%s/default/object-%d", class, n%1000), string(value))
					}
				})
			}
			b.ReportAllocs()
			group.Wait()
			tail, err := from.Tail(b.Context(), nil)
			if err != nil {
				b.Fatal(err)
			}
			defer tail.Close()
			b.ResetTimer()
			for !to.Vector().Includes(from.Vector()) {
				f, err := tail.Next(b.Context())
				if err != nil {
					b.Fatal(err)
				}
				if err := to.Apply(b.Context(), f.Records, f.Vector); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
