package api

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/mootkube/moot/node/pki"
	"github.com/spf13/pflag"
	cliflag "k8s.io/component-base/cli/flag"
	"k8s.io/kubernetes/cmd/kube-apiserver/app/options"
	"k8s.io/kubernetes/plugin/pkg/admission/defaulttolerationseconds"
)

// ownedFlags are the flags that tie the API server to the rest of the daemon,
// each with what to do instead.
func ownedFlags() map[string]string {
	const (
		keys  = "the daemon keeps its own keys and certificates"
		store = "the daemon is the store"
		merge = "ciphertext and unknown encodings cannot be merged"
		logs  = "the daemon writes its own log"
	)
	return map[string]string{
		"advertise-address":        "use --node-ip",
		"bind-address":             "it listens on all addresses of the node",
		"secure-port":              "use --api-port",
		"service-cluster-ip-range": "use --service-cidr",
		"service-account-issuer":   "it follows --cluster-domain",

		"encryption-provider-config":                  merge,
		"encryption-provider-config-automatic-reload": merge,
		"storage-media-type":                          merge,

		"storage-backend": store, "etcd-servers": store, "etcd-servers-overrides": store, "etcd-prefix": store,
		"etcd-keyfile": store, "etcd-certfile": store, "etcd-cafile": store, "endpoint-reconciler-type": store,

		"cert-dir": keys, "tls-cert-file": keys, "tls-private-key-file": keys, "client-ca-file": keys,
		"service-account-key-file": keys, "service-account-signing-key-file": keys,
		"service-account-signing-endpoint": keys,
		"proxy-client-cert-file":           keys, "proxy-client-key-file": keys,
		"requestheader-client-ca-file": keys, "requestheader-allowed-names": keys,
		"requestheader-username-headers": keys, "requestheader-group-headers": keys,
		"requestheader-extra-headers-prefix": keys,
		"kubelet-certificate-authority":      keys, "kubelet-client-certificate": keys, "kubelet-client-key": keys,

		"v": logs, "vmodule": logs, "logging-format": logs, "log-flush-frequency": logs,
		"log-json-info-buffer-size": logs, "log-json-split-stream": logs,
		"log-text-info-buffer-size": logs, "log-text-split-stream": logs,
	}
}

// flagSet holds every flag of kube-apiserver, bound to s.
func flagSet(s *options.ServerRunOptions) *pflag.FlagSet {
	fs := pflag.NewFlagSet("kube-apiserver", pflag.ContinueOnError)
	fs.SetNormalizeFunc(cliflag.WordSepNormalizeFunc)
	fs.SetOutput(io.Discard) // deprecation notices; errors are returned
	sections := s.Flags()
	for _, section := range sections.FlagSets {
		fs.AddFlagSet(section)
	}
	if fs.Lookup("default-unreachable-toleration-seconds") == nil {
		defaulttolerationseconds.RegisterFlags(fs)
	}
	return fs
}

// checkArgs rejects arguments that are unknown or the daemon's own and returns
// the names of the others.
func checkArgs(fs *pflag.FlagSet, args []string) (map[string]bool, error) {
	owned, given := ownedFlags(), map[string]bool{}
	var errs []error
	for _, arg := range args {
		name, _, _ := strings.Cut(strings.TrimLeft(arg, "-"), "=")
		flag := fs.Lookup(name)
		switch {
		case flag == nil:
			errs = append(errs, fmt.Errorf("--apiserver-arg %s: kube-apiserver has no such flag%s", name, similar(fs, name)))
		case owned[flag.Name] != "":
			errs = append(errs, fmt.Errorf("--apiserver-arg %s: cannot be set; %s", name, owned[flag.Name]))
		default:
			given[flag.Name] = true
		}
	}
	return given, errors.Join(errs...)
}

// similar names up to three flags that contain name or are contained in it.
func similar(fs *pflag.FlagSet, name string) string {
	if len(name) < 4 {
		return ""
	}
	var near []string
	fs.VisitAll(func(f *pflag.Flag) {
		if len(near) < 3 && (strings.Contains(f.Name, name) || strings.Contains(name, f.Name) && len(f.Name) > 3) {
			near = append(near, f.Name)
		}
	})
	if len(near) == 0 {
		return ""
	}
	return "; did you mean " + strings.Join(near, ", ") + "?"
}

// parse sets the daemon's flags and lays the user's over them.
func (c *Config) parse(s *options.ServerRunOptions) error {
	fs := flagSet(s)
	given, err := checkArgs(fs, c.Args)
	if err != nil {
		return err
	}
	line := c.ownFlags()
	for name, value := range c.defaultFlags() {
		if !given[name] {
			line = append(line, "--"+name+"="+value)
		}
	}
	if !given["authorization-mode"] && !given["authorization-config"] {
		line = append(line, "--authorization-mode=Node,RBAC")
	}
	for _, arg := range c.Args {
		line = append(line, "--"+strings.TrimLeft(arg, "-"))
	}
	if err := fs.Parse(line); err != nil {
		return fmt.Errorf("--apiserver-arg: %w", err)
	}
	return nil
}

// serviceRanges lists the Service networks as upstream's flag takes them.
func (c *Config) serviceRanges() string {
	parts := make([]string, 0, len(c.ServiceCIDRs))
	for _, p := range c.ServiceCIDRs {
		parts = append(parts, p.String())
	}
	return strings.Join(parts, ",")
}

// ownFlags are the settings users cannot change.
func (c *Config) ownFlags() []string {
	p := c.PKI
	return []string{
		"--etcd-servers=unix://" + c.EtcdSocket,
		// What is stored is merged field by field: it must name its fields.
		"--storage-media-type=application/json",
		fmt.Sprintf("--advertise-address=%s", c.NodeIP),
		fmt.Sprintf("--secure-port=%d", c.Port),
		"--service-cluster-ip-range=" + c.serviceRanges(),
		// The leader writes the endpoints of default/kubernetes for all.
		"--endpoint-reconciler-type=none",

		"--tls-cert-file=" + p.APIServer.Cert, "--tls-private-key-file=" + p.APIServer.Key,
		"--client-ca-file=" + p.CA.Cert,

		"--service-account-issuer=" + c.issuer(),
		"--service-account-key-file=" + p.ServiceAccountPublic,
		"--service-account-signing-key-file=" + p.ServiceAccountKey,

		"--kubelet-certificate-authority=" + p.CA.Cert,
		"--kubelet-client-certificate=" + p.KubeletClient.Cert, "--kubelet-client-key=" + p.KubeletClient.Key,

		"--proxy-client-cert-file=" + p.FrontProxyClient.Cert, "--proxy-client-key-file=" + p.FrontProxyClient.Key,
		"--requestheader-client-ca-file=" + p.FrontProxyCA.Cert,
		"--requestheader-allowed-names=" + pki.UserFrontProxy,
		"--requestheader-username-headers=X-Remote-User",
		"--requestheader-group-headers=X-Remote-Group",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-",

		"--enable-admission-plugins=NodeRestriction", // what users give adds to it
	}
}

// defaultFlags are the settings users may replace.
func (c *Config) defaultFlags() map[string]string {
	return map[string]string{
		"allow-privileged":          "true",
		"enable-aggregator-routing": "true",
		"service-account-jwks-uri":  c.issuer() + "/openid/v1/jwks", // else it names this node alone
		// The node's name need not resolve; its address is in the kubelet's certificate.
		"kubelet-preferred-address-types":        "InternalIP,ExternalIP,Hostname",
		"default-not-ready-toleration-seconds":   fmt.Sprint(int64(c.Toleration.Seconds())),
		"default-unreachable-toleration-seconds": fmt.Sprint(int64(c.Toleration.Seconds())),
		"profiling":                              "false",
		"etcd-db-metric-poll-interval":           "0s",
	}
}
