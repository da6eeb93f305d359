package main

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"slices"

	"github.com/spf13/pflag"
	"sigs.k8s.io/yaml"

	"github.com/mootkube/moot/node"
)

const defaultConfigFile = "/etc/moot/config.yaml"

// options are the settings of a node as the command line and the file give them.
type options struct {
	node.Config
	configFile string
	logLevel   string
	logFormat  string
}

func (o *options) addFlags(flags *pflag.FlagSet) {
	flags.StringVar(&o.configFile, "config", defaultConfigFile, "file with the same settings as these flags, in YAML")
	flags.StringVar(&o.DataDir, "data-dir", o.DataDir, "directory of all that must survive a reboot")
	flags.StringVar(&o.StateDir, "state-dir", o.StateDir, "directory of sockets and run state, on a file system that a reboot clears")
	flags.StringVar(&o.NodeName, "node-name", o.NodeName, "name of this node (default the host's name)")
	flags.Var(&addrValue{&o.NodeIP}, "node-ip", "address other machines reach this one at (default that of the default route)")
	flags.Var(&prefixValue{&o.ClusterCIDR}, "cluster-cidr", "network that pods get their addresses from")
	flags.Var(&prefixValue{&o.ServiceCIDR}, "service-cidr", "network that Services get their addresses from")
	flags.StringVar(&o.ClusterDomain, "cluster-domain", o.ClusterDomain, "DNS domain of the cluster")
	flags.IntVar(&o.APIPort, "api-port", o.APIPort, "TCP port of the Kubernetes API")
	flags.StringSliceVar(&o.TLSSANs, "tls-san", nil, "further names and addresses for the API's certificate")
	flags.StringVar(&o.CgroupRoot, "cgroup-root", o.CgroupRoot, "cgroup that pods' cgroups are made under (default the root)")
	flags.StringVar(&o.CgroupDriver, "cgroup-driver", o.CgroupDriver, "who makes pods' cgroups: cgroupfs, systemd, or auto")
	flags.StringVar(&o.RegistryDir, "registry-dir", o.RegistryDir, "mirrors and CAs of image registries, as containerd's certs.d")
	flags.StringArrayVar(&o.APIServerArgs, "apiserver-arg", nil, "extra flag of kube-apiserver, key=value; may be repeated")
	flags.StringArrayVar(&o.ControllerArgs, "controller-arg", nil, "extra flag of kube-controller-manager, key=value; may be repeated")
	flags.StringArrayVar(&o.SchedulerArgs, "scheduler-arg", nil, "extra flag of kube-scheduler, key=value; may be repeated")
	flags.StringArrayVar(&o.KubeletArgs, "kubelet-arg", nil, "extra flag of kubelet, key=value; may be repeated")
	flags.StringVar(&o.logLevel, "log-level", "warn", "least level that is logged: debug, info, warn, error")
	flags.StringVar(&o.logFormat, "log-format", "text", "text or json")
}

// addSomeFlags is addFlags for a command that uses a few of the settings: the
// file may hold all of them, --help shows the few.
func (o *options) addSomeFlags(flags *pflag.FlagSet, shown ...string) {
	o.addFlags(flags)
	flags.VisitAll(func(f *pflag.Flag) {
		f.Hidden = f.Name != "config" && !slices.Contains(shown, f.Name)
	})
}

// load adds the file's settings to those of the command line.
func (o *options) load(flags *pflag.FlagSet) error {
	return loadConfigFile(flags, o.configFile, flags.Changed("config"))
}

func (o *options) logger(out *os.File) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(o.logLevel)); err != nil {
		return nil, fmt.Errorf("--log-level %q: must be debug, info, warn or error", o.logLevel)
	}
	handlerOpts := &slog.HandlerOptions{Level: level}
	switch o.logFormat {
	case "text":
		return slog.New(slog.NewTextHandler(out, handlerOpts)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(out, handlerOpts)), nil
	default:
		return nil, fmt.Errorf("--log-format %q: must be text or json", o.logFormat)
	}
}

// loadConfigFile sets every flag the command line did not from a YAML file
// whose keys are the flags' names. A missing file is an error only when it
// was asked for.
func loadConfigFile(flags *pflag.FlagSet, path string, asked bool) error {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && !asked {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read configuration: %w", err)
	}
	var settings map[string]any
	if err := yaml.Unmarshal(data, &settings); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	for key, value := range settings {
		flag := flags.Lookup(key)
		if flag == nil || key == "config" || key == "help" {
			return fmt.Errorf("%s: unknown setting %q; moot up --help lists them", path, key)
		}
		if flag.Changed {
			continue
		}
		if err := setFlag(flags, key, value); err != nil {
			return fmt.Errorf("%s: %s: %w", path, key, err)
		}
	}
	return nil
}

func setFlag(flags *pflag.FlagSet, key string, value any) error {
	switch v := value.(type) {
	case []any:
		for _, item := range v {
			if err := setFlag(flags, key, item); err != nil {
				return err
			}
		}
		return nil
	case nil, map[string]any:
		return errors.New("must be a value or a list of values")
	default:
		return flags.Set(key, fmt.Sprint(v))
	}
}

// addrValue is an IP address flag.
type addrValue struct{ addr *netip.Addr }

func (v *addrValue) Type() string { return "address" }

func (v *addrValue) String() string {
	if v.addr == nil || !v.addr.IsValid() {
		return ""
	}
	return v.addr.String()
}

func (v *addrValue) Set(s string) error {
	addr, err := netip.ParseAddr(s)
	if err != nil {
		return errors.New("not an IP address; write it like 192.0.2.10")
	}
	*v.addr = addr.Unmap()
	return nil
}

// prefixValue is an IP network flag.
type prefixValue struct{ prefix *netip.Prefix }

func (v *prefixValue) Type() string { return "network" }

func (v *prefixValue) String() string {
	if v.prefix == nil || !v.prefix.IsValid() {
		return ""
	}
	return v.prefix.String()
}

func (v *prefixValue) Set(s string) error {
	prefix, err := netip.ParsePrefix(s)
	if err != nil {
		return errors.New("not a network; write it like 10.42.0.0/16")
	}
	*v.prefix = prefix
	return nil
}
