package sched

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"k8s.io/client-go/tools/cache"
	"k8s.io/component-base/configz"
	kcmapp "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	kcmoptions "k8s.io/kubernetes/cmd/kube-controller-manager/app/options"
)

const (
	// nodeCheckPeriod is how often nodes are looked at for silence.
	nodeCheckPeriod = time.Second
	// controllersName is the name upstream registers informers under.
	controllersName = "kube-controller-manager"
)

// commas lists networks as upstream's flags take them.
func commas(list []netip.Prefix) string {
	parts := make([]string, 0, len(list))
	for _, p := range list {
		parts = append(parts, p.String())
	}
	return strings.Join(parts, ",")
}

func (c *Config) controllerFlags(kubeconfig string) component {
	owned := commonOwned()
	for _, name := range []string{
		"root-ca-file", "service-account-private-key-file", "use-service-account-credentials",
		"controller-shutdown-timeout", "enable-leader-migration", "leader-migration-config",
	} {
		owned[name] = whyWired
	}
	owned["cluster-cidr"] = "use --cluster-cidr of the daemon itself"
	for _, name := range []string{"allocate-node-cidrs", "node-cidr-mask-size", "node-cidr-mask-size-ipv4", "node-cidr-mask-size-ipv6"} {
		owned[name] = "each node takes its own part of --cluster-cidr"
	}
	owned["service-cluster-ip-range"] = "use --service-cidr"
	return component{
		name: controllersName, option: "--controller-arg", owned: owned,
		always: []string{
			"kubeconfig=" + kubeconfig,
			"leader-elect=false",
			"secure-port=0",
			"use-service-account-credentials=true",
			"root-ca-file=" + c.CACert,
			"service-account-private-key-file=" + c.ServiceAccountKey,
			"cluster-cidr=" + commas(c.ClusterCIDRs),
			"service-cluster-ip-range=" + commas(c.ServiceCIDRs),
			"allocate-node-cidrs=false",
			"controller-shutdown-timeout=" + c.StopWithin.String(),
		},
		unless: map[string]string{
			"cluster-signing-cert-file": c.CACert,
			"cluster-signing-key-file":  c.CAKey,
			"node-monitor-period":       nodeCheckPeriod.String(),
			"node-monitor-grace-period": c.NodeGrace.String(),
			// What upstream's rates protect from, the brake does: see [judge].
			// A zone never counts as unhealthy, and each dead node is given up
			// at once.
			"unhealthy-zone-threshold":     "1",
			"node-eviction-rate":           "1000",
			"secondary-node-eviction-rate": "1000",

			"profiling":    "false",
			"kube-api-qps": "200", "kube-api-burst": "400", // the API server is in the same process
		},
	}
}

// runControllers blocks until ctx ends or the controllers cannot go on.
func (t *term) runControllers(ctx context.Context) error {
	kubeconfig, err := t.termKubeconfig(t.cfg.Controllers, "controllers")
	if err != nil {
		return err
	}
	options, err := kcmoptions.NewKubeControllerManagerOptions()
	if err != nil {
		return fmt.Errorf("make controller options: %w", err)
	}
	known, off, aliases := kcmapp.KnownControllers(), kcmapp.ControllersDisabledByDefault(), kcmapp.ControllerAliases()
	if err := t.cfg.controllerFlags(kubeconfig).parse(options.Flags(known, off, aliases), t.cfg.ControllerArgs); err != nil {
		return err
	}
	config, err := options.Config(ctx, known, off, aliases)
	if err != nil {
		return fmt.Errorf("configure controllers: %w", err)
	}
	defer forgetControllers()
	return kcmapp.Run(ctx, config.Complete())
}

// forgetControllers takes back what upstream registers for the whole process,
// or the next term could not start. The informers' name is given back by
// upstream itself unless the term ended while the controllers were being built.
func forgetControllers() {
	configz.Delete(kcmapp.ConfigzName)
	name, err := cache.NewInformerName(controllersName)
	if err != nil {
		// Only the names' use in metrics is lost.
		cache.ResetInformerNamesForTesting()
		return
	}
	name.Release()
}
