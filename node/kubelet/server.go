package kubelet

import (
	"fmt"
	"maps"
	"net/netip"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/kubernetes/cmd/kubelet/app/options"
	kubeletconfig "k8s.io/kubernetes/pkg/kubelet/apis/config"
)

// newServer lays out upstream's configuration for c: the base, the tuning, and
// the user's arguments over both.
func newServer(c *Config) (*options.KubeletServer, error) {
	s, err := options.NewKubeletServer()
	if err != nil {
		return nil, fmt.Errorf("build kubelet defaults: %w", err)
	}
	setIdentity(s, c)
	setSecurity(s, c)
	setHost(s, c)
	setTuning(s)
	if err := applyArgs(s, c.ExtraArgs); err != nil {
		return nil, err
	}
	// Ours to decide whatever the arguments say: nobody in this cluster approves
	// certificate requests of kubelets, and a second healthz port clashes with
	// nothing only when it is off or asked for.
	s.RotateCertificates = false
	s.ServerTLSBootstrap = false
	if err := options.ValidateKubeletServer(s); err != nil {
		return nil, fmt.Errorf("check kubelet settings: %w", err)
	}
	return s, nil
}

func setIdentity(s *options.KubeletServer, c *Config) {
	s.HostnameOverride = c.NodeName
	s.NodeIP = joinAddrs(c.NodeIPs)
	s.KubeConfig = c.Kubeconfig
	maps.Copy(s.NodeLabels, c.NodeLabels)
	s.RegisterNode = true
	s.Address = c.Listen.Addr().String()
	s.Port = int32(c.Listen.Port())
	s.RootDirectory = c.RootDir
	s.PodLogsDir = c.PodLogsDir
	s.CertDirectory = c.RootDir + "/pki"
	s.ContainerRuntimeEndpoint = "unix://" + c.RuntimeSocket
	s.ClusterDNS = addrStrings(c.ClusterDNS)
	s.ClusterDomain = c.ClusterDomain
	s.ResolverConfig = c.ResolvConf
}

func setSecurity(s *options.KubeletServer, c *Config) {
	s.TLSCertFile = c.ServingCert
	s.TLSPrivateKeyFile = c.ServingKey
	s.Authentication.Anonymous.Enabled = false
	s.Authentication.Webhook.Enabled = true
	s.Authentication.X509.ClientCAFile = c.ClientCA
	s.Authorization.Mode = kubeletconfig.KubeletAuthorizationModeWebhook
	s.ReadOnlyPort = 0
	s.HealthzPort = 0
	s.EnableServer = true
}

// setHost makes the kubelet take the host as it is: cgroup v1 as well as v2,
// and swap, which pods simply do not get to use.
func setHost(s *options.KubeletServer, c *Config) {
	s.FailCgroupV1 = false
	s.FailSwapOn = false
	s.MemorySwap.SwapBehavior = "NoSwap"
	s.CgroupDriver = c.CgroupDriver
	s.CgroupRoot = c.CgroupRoot
	if s.CgroupRoot == "" {
		s.CgroupRoot = "/"
	}
	s.ProtectKernelDefaults = false
	s.MakeIPTablesUtilChains = false // kube-proxy's nftables mode needs none of them
	s.MaxPods = int32(c.MaxPods)
	// Upstream keeps 10 and 15 % of a disk free, which on a large disk is a lot
	// to leave unused and on a developer's machine evicts everything.
	s.EvictionHard = map[string]string{
		"memory.available":  "100Mi",
		"nodefs.available":  "5%",
		"nodefs.inodesFree": "5%",
		"imagefs.available": "5%",
	}
	s.ImageGCHighThresholdPercent = 90
	s.ImageGCLowThresholdPercent = 85
}

// setTuning is about the time from a pod being bound to it running. Upstream's
// request limits are meant for thousands of kubelets sharing one API server;
// here the API server is in the same process.
func setTuning(s *options.KubeletServer) {
	s.KubeAPIQPS = 200
	s.KubeAPIBurst = 400
	s.EventRecordQPS = 50
	s.EventBurst = 100
	s.SerializeImagePulls = false
	pulls := int32(4)
	s.MaxParallelImagePulls = &pulls
	s.RegistryPullQPS = 20
	s.RegistryBurst = 40
	s.NodeStatusUpdateFrequency = metav1.Duration{Duration: 10 * time.Second}
	// How often a status is reported in which nothing changed: the Lease tells
	// that the node lives, and the disk of an idle node stays still.
	s.NodeStatusReportFrequency = metav1.Duration{Duration: time.Hour}
	s.ContentType = "application/vnd.kubernetes.protobuf"
}

func joinAddrs(addrs []netip.Addr) string { return strings.Join(addrStrings(addrs), ",") }

func addrStrings(addrs []netip.Addr) []string {
	out := make([]string, len(addrs))
	for i, a := range addrs {
		out[i] = a.String()
	}
	return out
}
