package sched

import (
	"context"
	"time"

	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	repair "k8s.io/kubernetes/pkg/registry/core/service/ipallocator/controller"
)

const (
	addressesCheck = 3 * time.Minute  // how often all are looked at, as upstream does
	addressesRetry = 10 * time.Second // after the first look at all has failed
)

// keepAddresses repairs, until ctx ends, the IPAddress objects of Services:
// makes what is missing and deletes what belongs to none. Upstream's API servers
// do it each; one that lags would free the address of a Service that has not
// arrived there.
func (t *term) keepAddresses(ctx context.Context, client kubernetes.Interface) error {
	for {
		repairAddresses(ctx, client)
		timer := time.NewTimer(addressesRetry)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
		}
		t.cfg.Log.Warn("the addresses of Services could not be looked at, trying again")
	}
}

// repairAddresses returns early only when the first look at all fails.
func repairAddresses(ctx context.Context, client kubernetes.Interface) {
	ctx, cancel := context.WithCancel(ctx)
	factory := informers.NewSharedInformerFactory(client, addressesCheck)
	worker := repair.NewRepairIPAddress(addressesCheck, client,
		factory.Core().V1().Services(), factory.Networking().V1().ServiceCIDRs(), factory.Networking().V1().IPAddresses())
	factory.Start(ctx.Done())
	defer factory.Shutdown()
	defer cancel()
	stop := make(chan struct{})
	stopped := context.AfterFunc(ctx, func() { close(stop) })
	defer stopped()
	worker.RunUntil(func() {}, stop)
}
