package main

import "path/filepath"

const containerdConfig = `version = 3
root = "/var/lib/moot/containerd"
state = "/run/moot/containerd"
[grpc]
  address = "/run/moot/containerd.sock"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = "` + pauseImage + `"
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
  use_internal_loopback = true
`

const kubeletConfig = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: true}
  x509: {clientCAFile: PKI/ca.crt}
authorization: {mode: Webhook}
cgroupDriver: cgroupfs
clusterDNS: [10.43.0.10]
clusterDomain: cluster.local
containerRuntimeEndpoint: unix:///run/moot/containerd.sock
failCgroupV1: false
failSwapOn: false
# A developer's disk may be fuller than upstream's defaults like.
evictionHard: {memory.available: 100Mi, nodefs.available: 5%, nodefs.inodesFree: 5%, imagefs.available: 5%}
imageGCHighThresholdPercent: 95
imageGCLowThresholdPercent: 90
tlsCertFile: PKI/kubelet.crt
tlsPrivateKeyFile: PKI/kubelet.key
`

const proxyConfig = `apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
clusterCIDR: 10.42.0.0/16
hostnameOverride: NODE
clientConnection: {kubeconfig: CONF}
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
`

const networkConfig = `{"cniVersion": "1.1.0", "name": "bench", "plugins": [{
  "type": "moot", "subnets": ["10.42.0.0/24"], "masquerade": true, "clusterCIDRs": ["10.42.0.0/16"],
  "dataDir": "/run/moot/cni", "capabilities": {"portMappings": true}}]}
`

func (r rival) etcd() []string {
	return []string{
		"etcd", "--name=" + r.name, "--data-dir=" + filepath.Join(r.dir, "etcd"), "--log-level=error",
		"--listen-client-urls=http://127.0.0.1:2379", "--advertise-client-urls=http://127.0.0.1:2379",
		"--listen-peer-urls=http://127.0.0.1:2380", "--initial-advertise-peer-urls=http://127.0.0.1:2380",
		"--initial-cluster=" + r.name + "=http://127.0.0.1:2380",
	}
}

func (r rival) containerd() []string {
	return []string{"containerd", "--config=" + r.pki("containerd.toml"), "--log-level=error"}
}

func (r rival) apiserver() []string {
	return []string{
		"kube-apiserver", "--etcd-servers=http://127.0.0.1:2379", "--advertise-address=" + r.ip,
		"--allow-privileged=true", "--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
		"--service-cluster-ip-range=10.43.0.0/16", "--client-ca-file=" + r.pki("ca.crt"),
		"--tls-cert-file=" + r.pki("apiserver.crt"), "--tls-private-key-file=" + r.pki("apiserver.key"),
		"--kubelet-certificate-authority=" + r.pki("ca.crt"),
		"--kubelet-client-certificate=" + r.pki("apiserver-kubelet.crt"), "--kubelet-client-key=" + r.pki("apiserver-kubelet.key"),
		"--kubelet-preferred-address-types=InternalIP",
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file=" + r.pki("service-account.pub"), "--service-account-signing-key-file=" + r.pki("service-account.key"),
		"--requestheader-client-ca-file=" + r.pki("ca.crt"), "--requestheader-allowed-names=front-proxy",
	}
}

// controllers and scheduler are alone: waiting for a lease of an earlier life
// would count against the rival.
func (r rival) controllers() []string {
	return []string{
		"kube-controller-manager", "--kubeconfig=" + r.pki("controllers.conf"), "--leader-elect=false",
		"--use-service-account-credentials=true", "--root-ca-file=" + r.pki("ca.crt"),
		"--service-account-private-key-file=" + r.pki("service-account.key"),
		"--cluster-signing-cert-file=" + r.pki("ca.crt"), "--cluster-signing-key-file=" + r.pki("ca.key"),
		"--allocate-node-cidrs=true", "--cluster-cidr=10.42.0.0/16", "--service-cluster-ip-range=10.43.0.0/16",
		"--authentication-kubeconfig=" + r.pki("controllers.conf"), "--authorization-kubeconfig=" + r.pki("controllers.conf"),
	}
}

func (r rival) scheduler() []string {
	return []string{
		"kube-scheduler", "--kubeconfig=" + r.pki("scheduler.conf"), "--leader-elect=false",
		"--authentication-kubeconfig=" + r.pki("scheduler.conf"), "--authorization-kubeconfig=" + r.pki("scheduler.conf"),
	}
}

func (r rival) kubelet() []string {
	return []string{
		"kubelet", "--config=" + r.pki("kubelet.yaml"), "--kubeconfig=" + r.pki("kubelet.conf"),
		"--hostname-override=" + r.name, "--node-ip=" + r.ip,
	}
}

func (r rival) proxy() []string {
	return []string{"kube-proxy", "--config=" + r.pki("proxy.yaml")}
}
