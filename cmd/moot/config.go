package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/spf13/pflag"
	"sigs.k8s.io/yaml"

	"github.com/mootkube/moot/node"
	"github.com/mootkube/moot/node/join"
)

const defaultConfigFile = "/etc/moot/config.yaml"

// options are the settings of a node as the command line and the file give them.
type options struct {
	node.Config
	configFile string
	tokenFile  string
	logLevel   string
	logFormat  string
}

func (o *options) addFlags(flags *pflag.FlagSet) {
	flags.StringVar(&o.configFile, "config", defaultConfigFile, "file with the same settings as these flags, in YAML")
	flags.StringVar(&o.DataDir, "data-dir", o.DataDir, "directory of all that must survive a reboot")
	flags.StringVar(&o.StateDir, "state-dir", o.StateDir, "directory of sockets and run state, on a file system that a reboot clears")
	flags.StringVar(&o.NodeName, "node-name", o.NodeName, "name of this node (default the host's name)")
	flags.Var(&addrsValue{&o.NodeIP, &o.NodeIP2}, "node-ip", "address other machines reach this one at, or one of each family with a comma (default those of the default routes)")
	flags.Var(&networksValue{&o.ClusterCIDR}, "cluster-cidr", "network that pods get their addresses from, or one of each family with a comma")
	flags.Var(&networksValue{&o.ServiceCIDR}, "service-cidr", "network that Services get their addresses from, likewise")
	flags.Var(&o.ServiceProxy, "service-proxy", "what serves Services here: auto (ebpf where the kernel can, else kube-proxy), ebpf, nftables, iptables, or none (something you install yourself)")
	flags.BoolVar(&o.ServiceXDP, "service-xdp", o.ServiceXDP, "with eBPF, have network drivers that run XDP programs lead packets from outside on; some interrupt the link for it, or give up offloads")
	flags.Var(&o.Network, "network", "how pods of different nodes reach each other: auto (routes on one link, else VXLAN), vxlan, or none (install a CNI plugin yourself)")
	flags.IntVar(&o.OverlayPort, "overlay-port", o.OverlayPort, "UDP port of the VXLAN overlay, the same on all nodes")
	flags.StringVar(&o.ClusterDomain, "cluster-domain", o.ClusterDomain, "DNS domain of the cluster")
	flags.IntVar(&o.Port, "port", o.Port, "TCP and UDP port of all traffic between members")
	flags.StringVar(&o.Join, "join", o.Join, "member of the cluster to join, host:port; also MOOT_JOIN")
	flags.StringVar(&o.Token, "token", o.Token, "token to join with, from moot token create; also MOOT_TOKEN")
	flags.StringVar(&o.tokenFile, "token-file", o.tokenFile, "file with the token, which does not show in the process list as --token does")
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

// load adds the settings of the environment and then those of the file to those
// of the command line, which goes first.
func (o *options) load(flags *pflag.FlagSet) error {
	for _, v := range []struct{ env, flag string }{{"MOOT_JOIN", "join"}, {"MOOT_TOKEN", "token"}} {
		value := os.Getenv(v.env)
		if value == "" {
			continue
		}
		if !flags.Changed(v.flag) && (v.flag != "token" || !flags.Changed("token-file")) {
			if err := flags.Set(v.flag, value); err != nil {
				return fmt.Errorf("%s: %w", v.env, err)
			}
		}
		if err := os.Unsetenv(v.env); err != nil { // nothing this process starts is to inherit it
			return fmt.Errorf("%s: %w", v.env, err)
		}
	}
	return loadConfigFile(flags, o.configFile, flags.Changed("config"))
}

// loadToken reads the token's file unless the token itself was given. A member
// needs none.
func (o *options) loadToken() error {
	if o.IsMember() {
		return nil
	}
	if o.Token == "" && o.tokenFile != "" {
		data, err := os.ReadFile(o.tokenFile)
		if err != nil {
			return fmt.Errorf("read --token-file: %w", err)
		}
		o.Token = strings.TrimSpace(string(data))
	}
	switch {
	case o.Join != "" && o.Token == "":
		return errors.New("--join needs a token: run `sudo moot token create` on a member, and give what it prints as --token")
	case o.Join == "" && o.Token != "":
		return errors.New("--token goes with --join HOST:PORT, a member of the cluster to join")
	}
	return nil
}

// client asks the daemon on this machine.
func (o *options) client() node.Client { return node.Client{Socket: o.StatusSocket()} }

// completeName fills in the host's name where no address is needed.
func (o *options) completeName() error {
	ip := o.NodeIP
	o.NodeIP = netip.IPv4Unspecified()
	defer func() { o.NodeIP = ip }()
	return o.Complete()
}

func addOutputFlag(flags *pflag.FlagSet, output *string) {
	flags.StringVarP(output, "output", "o", "", "json for a machine to read")
}

func checkOutput(output string) error {
	if output != "" && output != "json" {
		return fmt.Errorf("-o %q: must be json, or left out", output)
	}
	return nil
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
	// A name of digits is not to become a floating-point number.
	digits := func(d *json.Decoder) *json.Decoder { d.UseNumber(); return d }
	if err := yaml.Unmarshal(data, &settings, digits); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	if flags.Changed("token-file") { // it says what the token is, and goes first
		delete(settings, "token")
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

// addrsValue is a flag for an IP address, or one of each family.
type addrsValue struct{ first, second *netip.Addr }

func (v *addrsValue) Type() string { return "address" }

func (v *addrsValue) String() string {
	switch {
	case v.first == nil || !v.first.IsValid():
		return ""
	case !v.second.IsValid():
		return v.first.String()
	default:
		return v.first.String() + "," + v.second.String()
	}
}

func (v *addrsValue) Set(s string) error {
	one, other, two := strings.Cut(s, ",")
	first, err := netip.ParseAddr(strings.TrimSpace(one))
	if err != nil {
		return errors.New("not an IP address; write it like 192.0.2.10")
	}
	var second netip.Addr
	if two {
		if second, err = netip.ParseAddr(strings.TrimSpace(other)); err != nil {
			return errors.New("not two IP addresses; write them like 192.0.2.10,2001:db8::10")
		}
	}
	*v.first, *v.second = first.Unmap(), second.Unmap()
	return nil
}

// networksValue is a flag for an IP network, or one of each family.
type networksValue struct{ networks *join.Networks }

func (v *networksValue) Type() string { return "network" }

func (v *networksValue) String() string {
	if v.networks == nil {
		return ""
	}
	return v.networks.String()
}

func (v *networksValue) Set(s string) error {
	networks, err := join.ParseNetworks(s)
	if err != nil {
		return fmt.Errorf("%w; write it like 10.42.0.0/16 or 10.42.0.0/16,fd42::/48", err)
	}
	*v.networks = networks
	return nil
}
