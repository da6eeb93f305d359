package kubelet

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sort"
	"strings"

	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/util/sets"
	cliflag "k8s.io/component-base/cli/flag"
	kubeletv1beta1 "k8s.io/kubelet/config/v1beta1"
	"k8s.io/kubernetes/cmd/kubelet/app/options"
	kubeletconfig "k8s.io/kubernetes/pkg/kubelet/apis/config"
	kubeletscheme "k8s.io/kubernetes/pkg/kubelet/apis/config/scheme"
	"sigs.k8s.io/yaml"
)

// ownedArgs are the settings that tie the kubelet to the rest of the daemon,
// under both the flag's and the field's name, with where to set them instead.
func ownedArgs() map[string]string {
	owned := map[string]string{
		"hostname-override":          "use --node-name",
		"node-ip":                    "use --node-ip of the daemon itself",
		"cgroup-driver":              "use --cgroup-driver",
		"cgroupDriver":               "use --cgroup-driver",
		"cgroup-root":                "use --cgroup-root",
		"cgroupRoot":                 "use --cgroup-root",
		"config":                     "give the settings one by one",
		"config-dir":                 "give the settings one by one",
		"lock-file":                  "the daemon holds its own lock",
		"exit-on-lock-contention":    "the daemon holds its own lock",
		"rotate-certificates":        "the daemon issues the kubelet's certificates",
		"rotateCertificates":         "the daemon issues the kubelet's certificates",
		"rotate-server-certificates": "the daemon issues the kubelet's certificates",
		"serverTLSBootstrap":         "the daemon issues the kubelet's certificates",
	}
	const wired = "the daemon wires this itself"
	for _, name := range []string{
		"kubeconfig", "bootstrap-kubeconfig", "cert-dir", "root-dir", "enable-server", "enableServer",
		"container-runtime-endpoint", "containerRuntimeEndpoint",
		"image-service-endpoint", "imageServiceEndpoint",
		"tls-cert-file", "tlsCertFile", "tls-private-key-file", "tlsPrivateKeyFile", "help", "version",
	} {
		owned[name] = wired
	}
	return owned
}

// applyArgs lays the user's arguments over s. Flags are parsed by the kubelet's
// own flag set; a name that is no flag is taken for a field of
// KubeletConfiguration, with a YAML value.
func applyArgs(s *options.KubeletServer, args []string) error {
	if len(args) == 0 {
		return nil
	}
	flags := kubeletFlagSet(s)
	owned := ownedArgs()
	var flagArgs []string
	fields := map[string]any{}
	var errs []error
	for _, arg := range args {
		name, value, hasValue := strings.Cut(strings.TrimLeft(arg, "-"), "=")
		normal := strings.ReplaceAll(name, "_", "-")
		top, _, _ := strings.Cut(name, ".")
		refused := cmp.Or(owned[normal], owned[top])
		switch {
		case name == "":
			errs = append(errs, fmt.Errorf("--kubelet-arg %q: want name=value", arg))
		case refused != "":
			errs = append(errs, fmt.Errorf("--kubelet-arg %s: cannot be set; %s", name, refused))
		case flags.Lookup(normal) != nil:
			flagArg := "--" + normal
			if hasValue {
				flagArg += "=" + value
			}
			flagArgs = append(flagArgs, flagArg)
		case configFields().Has(top):
			if err := setField(fields, name, value); err != nil {
				errs = append(errs, fmt.Errorf("--kubelet-arg %s: %w", name, err))
			}
		default:
			errs = append(errs, fmt.Errorf("--kubelet-arg %s: neither a kubelet flag nor a field of KubeletConfiguration%s", name, suggest(name, flags)))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := mergeFields(&s.KubeletConfiguration, fields); err != nil {
		return err
	}
	gates := s.FeatureGates
	s.FeatureGates = map[string]bool{}
	// The flag set was bound before the merge replaced the object: bind again.
	flags = kubeletFlagSet(s)
	if err := flags.Parse(flagArgs); err != nil {
		return fmt.Errorf("--kubelet-arg: %w", err)
	}
	for gate, on := range gates {
		if _, set := s.FeatureGates[gate]; !set {
			s.FeatureGates[gate] = on
		}
	}
	return nil
}

func kubeletFlagSet(s *options.KubeletServer) *pflag.FlagSet {
	fs := pflag.NewFlagSet("kubelet", pflag.ContinueOnError)
	fs.SetNormalizeFunc(cliflag.WordSepNormalizeFunc)
	fs.SetOutput(io.Discard) // every flag is marked deprecated; the notices say nothing useful
	s.AddFlags(fs)
	return fs
}

// configFields lists the top-level fields of KubeletConfiguration by their
// names in YAML.
func configFields() sets.Set[string] {
	fields := sets.New[string]()
	for _, name := range jsonNames(kubeletv1beta1.KubeletConfiguration{}) {
		fields.Insert(name)
	}
	fields.Delete("kind", "apiVersion")
	return fields
}

// setField puts value, parsed as YAML, at a dotted path in tree.
func setField(tree map[string]any, path, value string) error {
	var parsed any
	if err := yaml.Unmarshal([]byte(value), &parsed); err != nil {
		return fmt.Errorf("parse %q as YAML: %w", value, err)
	}
	parts := strings.Split(path, ".")
	for _, part := range parts[:len(parts)-1] {
		next, ok := tree[part].(map[string]any)
		if !ok {
			if tree[part] != nil {
				return fmt.Errorf("%q is set as a whole and in parts", part)
			}
			next = map[string]any{}
			tree[part] = next
		}
		tree = next
	}
	tree[parts[len(parts)-1]] = parsed
	return nil
}

// mergeFields lays fields over cfg: through the versioned form, decoded strictly
// so that a misspelt nested field is an error.
func mergeFields(cfg *kubeletconfig.KubeletConfiguration, fields map[string]any) error {
	if len(fields) == 0 {
		return nil
	}
	scheme, _, err := kubeletscheme.NewSchemeAndCodecs()
	if err != nil {
		return fmt.Errorf("build kubelet scheme: %w", err)
	}
	versioned := &kubeletv1beta1.KubeletConfiguration{}
	if err := scheme.Convert(cfg, versioned, nil); err != nil {
		return fmt.Errorf("convert kubelet configuration: %w", err)
	}
	patch, err := json.Marshal(fields)
	if err != nil {
		return fmt.Errorf("encode kubelet arguments: %w", err)
	}
	// Decoding over the object replaces scalars and lists and merges maps.
	if err := yaml.UnmarshalStrict(patch, versioned); err != nil {
		return fmt.Errorf("--kubelet-arg: %w", err)
	}
	merged := &kubeletconfig.KubeletConfiguration{}
	if err := scheme.Convert(versioned, merged, nil); err != nil {
		return fmt.Errorf("convert kubelet configuration: %w", err)
	}
	*cfg = *merged
	return nil
}

// suggest names the flags and fields that look like name.
func suggest(name string, flags *pflag.FlagSet) string {
	squash := func(s string) string {
		return strings.ToLower(strings.NewReplacer("-", "", "_", "").Replace(s))
	}
	want := squash(name)
	var near []string
	consider := func(candidate string) {
		have := squash(candidate)
		if have == want || len(want) >= 4 && (strings.Contains(have, want) || strings.Contains(want, have)) {
			near = append(near, candidate)
		}
	}
	flags.VisitAll(func(f *pflag.Flag) { consider(f.Name) })
	for field := range configFields() {
		consider(field)
	}
	if len(near) == 0 {
		return ""
	}
	sort.Strings(near)
	if len(near) > 3 {
		near = near[:3]
	}
	return "; did you mean " + strings.Join(near, ", ") + "?"
}
