package sched

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"

	"k8s.io/component-base/configz"
	schedapp "k8s.io/kubernetes/cmd/kube-scheduler/app"
	schedoptions "k8s.io/kubernetes/cmd/kube-scheduler/app/options"
	"sigs.k8s.io/yaml"
)

// schedulerConfigz is the name upstream registers its settings under.
const schedulerConfigz = "componentconfig"

func schedulerFlags(kubeconfig string) component {
	owned := commonOwned()
	owned["write-config-to"] = "it would end the process"
	return component{
		name: "kube-scheduler", option: "--scheduler-arg", owned: owned,
		always: []string{"kubeconfig=" + kubeconfig, "leader-elect=false", "secure-port=0"},
		unless: map[string]string{
			"profiling":    "false",
			"kube-api-qps": "2000", "kube-api-burst": "4000", // the API server is in the same process
		},
	}
}

// runScheduler blocks until ctx ends or the scheduler cannot go on.
func (t *term) runScheduler(ctx context.Context) error {
	kubeconfig, err := t.termKubeconfig(t.cfg.Scheduler, "scheduler")
	if err != nil {
		return err
	}
	args, err := t.ownSchedulerConfig(t.cfg.SchedulerArgs, kubeconfig)
	if err != nil {
		return err
	}
	options := schedoptions.NewOptions()
	if err := schedulerFlags(kubeconfig).parse(*options.Flags, args); err != nil {
		return err
	}
	config, scheduler, err := schedapp.Setup(ctx, options)
	if err != nil {
		return fmt.Errorf("configure scheduler: %w", err)
	}
	defer configz.Delete(schedulerConfigz)
	return schedapp.Run(ctx, config, scheduler)
}

func readSchedulerConfig(path string) (map[string]any, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("--scheduler-arg config: %w", err)
	}
	config := map[string]any{}
	if err := yaml.Unmarshal(data, &config); err != nil {
		return nil, fmt.Errorf("--scheduler-arg config %s: %w", path, err)
	}
	return config, nil
}

// ownSchedulerConfig replaces the file in a "config" argument by a copy that
// goes through the gate: with a file, upstream takes the connection from there.
func (t *term) ownSchedulerConfig(args []string, kubeconfig string) ([]string, error) {
	args = slices.Clone(args)
	for i, arg := range args {
		name, path, _ := strings.Cut(strings.TrimLeft(arg, "-"), "=")
		if name != "config" {
			continue
		}
		config, err := readSchedulerConfig(path)
		if err != nil {
			return nil, err
		}
		connection, ok := config["clientConnection"].(map[string]any)
		if !ok {
			connection = map[string]any{}
		}
		connection["kubeconfig"] = kubeconfig
		config["clientConnection"] = connection
		config["leaderElection"] = map[string]any{"leaderElect": false}
		data, err := yaml.Marshal(config)
		if err != nil {
			return nil, fmt.Errorf("--scheduler-arg config %s: %w", path, err)
		}
		if path, err = t.write("scheduler.yaml", data); err != nil {
			return nil, err
		}
		args[i] = "config=" + path
	}
	return args, nil
}
