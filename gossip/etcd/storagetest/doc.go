// Package storagetest runs Kubernetes' own storage suite against our etcd API:
// every test of k8s.io/apiserver/pkg/storage/testing that upstream runs on its
// etcd3 store, driven through that very store, with a client connected to a
// gossip/etcd server on a unix socket in place of a real etcd.
//
// It is a package of its own so that nothing else here links kube-apiserver's
// library. What cannot hold by design is named in the table of exceptions, with
// the reason.
package storagetest
