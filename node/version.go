package node

import "runtime/debug"

// Version is Moot's own version.
const Version = "0.1.0-dev"

// Versions tells what the program is made of.
type Versions struct {
	Moot       string `json:"moot"`
	Kubernetes string `json:"kubernetes"`
	Containerd string `json:"containerd"`
	CoreDNS    string `json:"coredns"`
	Go         string `json:"go"`
}

// ReadVersions reads the versions of the modules linked in.
func ReadVersions() Versions {
	v := Versions{Moot: Version}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return v
	}
	v.Go = info.GoVersion
	for _, dep := range info.Deps {
		switch dep.Path {
		case "k8s.io/kubernetes":
			v.Kubernetes = dep.Version
		case "github.com/containerd/containerd/v2":
			v.Containerd = dep.Version
		case "github.com/coredns/coredns":
			v.CoreDNS = dep.Version
		}
	}
	return v
}
