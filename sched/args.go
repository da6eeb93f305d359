package sched

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/pflag"
	cliflag "k8s.io/component-base/cli/flag"
	kcmapp "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	kcmoptions "k8s.io/kubernetes/cmd/kube-controller-manager/app/options"
	schedoptions "k8s.io/kubernetes/cmd/kube-scheduler/app/options"
)

const (
	whyWired  = "the daemon wires this itself"
	whyLeader = "the daemon decides who leads"
	whyPort   = "it runs inside the daemon and listens nowhere"
	whyLogs   = "the daemon writes its own log"
	whyGates  = "one process has one set; give it with --apiserver-arg"
)

// commonOwned are the flags that both components have and the daemon owns.
func commonOwned() map[string]string {
	return map[string]string{
		"kubeconfig": whyWired, "master": whyWired,
		"authentication-kubeconfig": whyPort, "authorization-kubeconfig": whyPort,
		"secure-port": whyPort, "bind-address": whyPort, "tls-cert-file": whyPort, "tls-private-key-file": whyPort,
		"cert-dir":     whyPort,
		"leader-elect": whyLeader, "leader-elect-resource-lock": whyLeader, "leader-elect-resource-name": whyLeader,
		"leader-elect-resource-namespace": whyLeader, "leader-elect-lease-duration": whyLeader,
		"leader-elect-renew-deadline": whyLeader, "leader-elect-retry-period": whyLeader,
		"feature-gates": whyGates, "emulated-version": whyGates, "min-compatibility-version": whyGates,
		"v": whyLogs, "vmodule": whyLogs, "logging-format": whyLogs, "log-flush-frequency": whyLogs,
	}
}

// CheckArgs says what is wrong with the user's arguments, which would otherwise
// show only once this node leads, and then nobody would.
func (c *Config) CheckArgs() error {
	options, err := kcmoptions.NewKubeControllerManagerOptions()
	if err != nil {
		return fmt.Errorf("make controller options: %w", err)
	}
	known, off, aliases := kcmapp.KnownControllers(), kcmapp.ControllersDisabledByDefault(), kcmapp.ControllerAliases()
	errs := []error{
		c.controllerFlags("").parse(options.Flags(known, off, aliases), c.ControllerArgs),
		schedulerFlags("").parse(*schedoptions.NewOptions().Flags, c.SchedulerArgs),
	}
	for _, arg := range c.SchedulerArgs {
		if name, path, _ := strings.Cut(strings.TrimLeft(arg, "-"), "="); name == "config" {
			_, err := readSchedulerConfig(path)
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// component is an upstream program whose flags are set here.
type component struct {
	name   string            // as upstream calls it
	option string            // the daemon's flag that carries the user's arguments
	owned  map[string]string // flags users cannot set, and what to do instead
	always []string          // set before the user's
	unless map[string]string // set when the user does not
}

// parse sets the flags in sections from c and the user's args.
func (c component) parse(sections cliflag.NamedFlagSets, args []string) error {
	fs := pflag.NewFlagSet(c.name, pflag.ContinueOnError)
	fs.SetNormalizeFunc(cliflag.WordSepNormalizeFunc)
	fs.SetOutput(io.Discard) // deprecation notices; errors are returned
	for _, section := range sections.FlagSets {
		// The scheduler asks its sections, not the flags, what was set.
		fs.AddFlagSet(section)
	}
	given := map[string]string{}
	var errs []error
	for _, arg := range args {
		name, value, _ := strings.Cut(strings.TrimLeft(arg, "-"), "=")
		flag := fs.Lookup(name)
		switch {
		case flag == nil:
			errs = append(errs, fmt.Errorf("%s %s: %s has no such flag", c.option, name, c.name))
		case c.owned[flag.Name] != "":
			errs = append(errs, fmt.Errorf("%s %s: cannot be set; %s", c.option, name, c.owned[flag.Name]))
		default:
			given[flag.Name] = value
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	line := append([]string{}, c.always...)
	for name, value := range c.unless {
		if _, ok := given[name]; !ok {
			line = append(line, name+"="+value)
		}
	}
	line = append(line, args...)
	for _, arg := range line {
		name, value, hasValue := strings.Cut(strings.TrimLeft(arg, "-"), "=")
		if err := c.set(sections, name, value, hasValue); err != nil {
			return err
		}
	}
	return nil
}

// set sets one flag in the section that has it.
func (c component) set(sections cliflag.NamedFlagSets, name, value string, hasValue bool) error {
	for _, section := range sections.FlagSets {
		section.SetOutput(io.Discard)
		flag := section.Lookup(strings.ReplaceAll(name, "_", "-"))
		if flag == nil {
			continue
		}
		if !hasValue {
			if value = flag.NoOptDefVal; value == "" {
				return fmt.Errorf("%s %s: needs a value", c.option, name)
			}
		}
		if err := section.Set(flag.Name, value); err != nil {
			return fmt.Errorf("%s: %w", c.option, err)
		}
		return nil
	}
	return fmt.Errorf("%s %s: %s has no such flag", c.option, name, c.name)
}
