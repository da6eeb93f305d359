package gossip

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestSharedCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		s := shared{asked: newSignal()}
		var began []time.Time
		hold := make(chan struct{}) // of the first call
		var running sync.WaitGroup
		running.Go(func() {
			s.run(ctx, func(context.Context) error {
				began = append(began, time.Now())
				if len(began) == 1 {
					<-hold
				}
				return nil
			})
		})
		first := s.join()
		synctest.Wait()
		start := time.Now()
		late := s.join()
		if late == first {
			t.Fatal("a caller shares a call that began before it came")
		}
		for range 100 {
			if s.join() != late {
				t.Fatal("callers that wait do not share one call")
			}
		}
		<-late.done // though the first hangs
		if waited := time.Since(start); waited != shareFor {
			t.Errorf("the second call began after %v, want %v", waited, shareFor)
		}
		select {
		case <-first.done:
			t.Error("the first call is over")
		default:
		}
		close(hold)
		<-first.done
		if len(began) != 2 {
			t.Errorf("%d calls, want 2", len(began))
		}
		stop()
		running.Wait()
	})
}
