package sched

import (
	"strings"
	"testing"

	kcmapp "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	kcmoptions "k8s.io/kubernetes/cmd/kube-controller-manager/app/options"
	schedoptions "k8s.io/kubernetes/cmd/kube-scheduler/app/options"
)

func parseController(t *testing.T, args ...string) (*kcmoptions.KubeControllerManagerOptions, error) {
	t.Helper()
	options, err := kcmoptions.NewKubeControllerManagerOptions()
	if err != nil {
		t.Fatal(err)
	}
	cfg := DefaultConfig()
	sections := options.Flags(kcmapp.KnownControllers(), kcmapp.ControllersDisabledByDefault(), kcmapp.ControllerAliases())
	return options, cfg.controllerFlags("/k").parse(sections, args)
}

func TestControllerArgs(t *testing.T) {
	options, err := parseController(t, "--node-monitor-grace-period=7s", "concurrent_deployment_syncs=9", "controllers=*,-ttl-controller")
	if err != nil {
		t.Fatal(err)
	}
	if got := options.NodeLifecycleController.NodeMonitorGracePeriod.Duration.String(); got != "7s" {
		t.Errorf("the user's grace period is %s", got)
	}
	if got := options.NodeLifecycleController.NodeMonitorPeriod; got.Duration != nodeCheckPeriod {
		t.Errorf("our period is %s", got)
	}
	if options.DeploymentController.ConcurrentDeploymentSyncs != 9 || strings.Join(options.Generic.Controllers, ",") != "*,-ttl-controller" {
		t.Errorf("user's flags are lost: %v %v", options.DeploymentController.ConcurrentDeploymentSyncs, options.Generic.Controllers)
	}
	if options.Generic.LeaderElection.LeaderElect || options.SecureServing.BindPort != 0 || options.Generic.ClientConnection.Kubeconfig != "/k" {
		t.Error("the daemon's own flags are lost")
	}
	for arg, want := range map[string]string{
		"no-such-flag=1":       "no such flag",
		"kubeconfig=/x":        "cannot be set",
		"leader_elect=true":    "cannot be set",
		"feature-gates=A=true": "--apiserver-arg",
		"cluster-cidr=1.2.3.4": "--cluster-cidr",
		"node-monitor-period":  "needs a value",
		"node-monitor-period=": "invalid",
	} {
		if _, err := parseController(t, arg); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "--controller-arg") {
			t.Errorf("%s: %v, want %q", arg, err, want)
		}
	}
}

func TestSchedulerArgs(t *testing.T) {
	options := schedoptions.NewOptions()
	if err := schedulerFlags("/k").parse(*options.Flags, []string{"pod-max-in-unschedulable-pods-duration=1m", "profiling"}); err != nil {
		t.Fatal(err)
	}
	if options.Deprecated.PodMaxInUnschedulablePodsDuration.String() != "1m0s" || !options.Deprecated.EnableProfiling {
		t.Error("user's flags are lost")
	}
	// The scheduler looks at its sections for what was set.
	if !options.Flags.FlagSet("deprecated").Changed("kubeconfig") || !options.Flags.FlagSet("leader election").Changed("leader-elect") {
		t.Error("the daemon's own flags are not seen")
	}
	for _, arg := range []string{"write-config-to=/x", "master=https://x", "nonsense"} {
		options := schedoptions.NewOptions()
		if err := schedulerFlags("/k").parse(*options.Flags, []string{arg}); err == nil {
			t.Errorf("%s: accepted", arg)
		}
	}
}

func TestCheckArgs(t *testing.T) {
	cfg := goodConfig()
	cfg.ControllerArgs, cfg.SchedulerArgs = []string{"node-monitor-grace-period=7s"}, []string{"profiling"}
	if err := cfg.CheckArgs(); err != nil {
		t.Error(err)
	}
	cfg.ControllerArgs, cfg.SchedulerArgs = []string{"node-monitor-grace-period=7"}, []string{"nonsense", "config=/not/there.yaml"}
	err := cfg.CheckArgs()
	for _, want := range []string{"--controller-arg: ", "--scheduler-arg nonsense: ", "--scheduler-arg config: "} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q in it", err, want)
		}
	}
}
