package dns

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	stdnet "net"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
)

const (
	settle      = 100 * time.Millisecond // changes within this time are handled as one
	look        = 15 * time.Second       // how often the host's resolver configuration is looked at
	waitConfig  = 5 * time.Second        // for the ConfigMap at the start, before the defaults are served
	retryStart  = 10 * time.Second       // between tries to answer at all
	retryPublic = 2 * time.Second        // between tries to write the EndpointSlice
	republish   = time.Minute            // how often it is put back if someone took it
)

// Server is a node's DNS server.
type Server struct {
	cfg    Config
	client kubernetes.Interface
	port   uint16 // of [Config.Listen]
}

// New returns a server. It starts nothing.
func New(cfg Config) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("check DNS settings: %w", err)
	}
	rest, err := clientcmd.BuildConfigFromFlags("", cfg.Kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("read DNS kubeconfig: %w", err)
	}
	client, err := kubernetes.NewForConfig(rest)
	if err != nil {
		return nil, fmt.Errorf("build DNS client: %w", err)
	}
	return &Server{cfg: cfg, client: client, port: port}, nil
}

// Run serves until ctx ends, and then returns nil. The listen addresses must be
// there. ready, which may be nil, is called once: when queries are answered and
// the Service leads here. What keeps it from answering at all may pass, and is
// told to [Config.Idle] until it has.
func (s *Server) Run(ctx context.Context, ready func()) (err error) {
	trigger := make(chan struct{}, 1)
	source, err := s.watchConfig(trigger)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer source.stop()
	defer cancel()
	source.start(ctx)

	dns := newInstance(s.cfg.StateDir, s.cfg.Doubt, s.cfg.RestoreKlog)
	defer func() { err = errors.Join(err, dns.stop()) }()
	if !source.waitSynced(ctx, waitConfig) {
		s.cfg.Log.Warn("DNS configuration cannot be read from the API yet, starting without it")
	}
	if !s.begin(ctx, dns, source, trigger) || !s.publish(ctx) {
		return nil
	}
	if ready != nil {
		ready()
	}
	ticker := time.NewTicker(look)
	defer ticker.Stop()
	again := time.NewTicker(republish)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-trigger:
			if !pause(ctx, settle) {
				return nil
			}
		case <-ticker.C:
		case <-again.C:
			if err := s.writeSlices(ctx); err != nil && ctx.Err() == nil {
				s.cfg.Log.Warn("DNS server may not be behind its Service", "err", err)
			}
			continue
		}
		if err := s.reload(dns, source); err != nil {
			return err
		}
	}
}

// begin loads a configuration, trying until ctx ends.
func (s *Server) begin(ctx context.Context, dns *instance, source *configSource, trigger <-chan struct{}) bool {
	told := ""
	for {
		// CoreDNS leaves behind what it has started before it finds a port taken.
		err := s.probe()
		if err == nil {
			err = s.reload(dns, source)
		}
		if err == nil {
			return true
		}
		if told != err.Error() {
			told = err.Error()
			s.cfg.Log.Error("DNS does not answer on this node, trying again", "err", err)
		}
		if s.cfg.Idle != nil {
			s.cfg.Idle(err)
		}
		timer := time.NewTimer(retryStart)
		select {
		case <-ctx.Done():
		case <-trigger:
		case <-timer.C:
		}
		timer.Stop()
		if ctx.Err() != nil {
			return false
		}
	}
}

// probe says why one of the ports cannot be had, if so.
func (s *Server) probe() error {
	for _, addr := range s.cfg.Listen {
		at := netip.AddrPortFrom(addr, s.port)
		packets, err := stdnet.ListenUDP("udp", stdnet.UDPAddrFromAddrPort(at))
		if err == nil {
			err = packets.Close()
		}
		if err != nil {
			return err
		}
		streams, err := stdnet.ListenTCP("tcp", stdnet.TCPAddrFromAddrPort(at))
		if err == nil {
			err = streams.Close()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// reload loads the configuration as it is now. A bad one is logged and changes
// nothing; only when nothing runs and nothing else can is that an error.
func (s *Server) reload(dns *instance, source *configSource) error {
	corefile, custom := source.current()
	if corefile == "" {
		corefile = DefaultCorefile(s.cfg.Domain)
	}
	env := surroundings{listen: s.cfg.Listen, kubeconfig: s.cfg.Kubeconfig}
	if r, ok := pickResolver(s.cfg.ResolvConf, slices.Concat(s.cfg.Service, s.cfg.Listen)); ok {
		env.upstream = r.upstream()
		source.noteUpstream(r)
	}
	text, notes, err := rewrite(corefile, custom, env)
	var refused string
	if err == nil {
		// A changed host file must be read again although the text is the same.
		text = "# upstream " + source.upstream + "\n" + text
		if refused = text; text == dns.corefile {
			return nil
		}
	} else {
		refused = err.Error()
	}
	told := refused == source.refused
	if told && dns.running != nil {
		return nil
	}
	if err == nil {
		for _, note := range notes {
			s.cfg.Log.Info("Corefile adapted", "note", note)
		}
		if err = dns.load(text); err == nil {
			source.refused = ""
			s.cfg.Log.Info("DNS configuration loaded", "listen", s.cfg.Listen)
			return nil
		}
	}
	source.refused = refused
	switch {
	case dns.running != nil:
		s.cfg.Log.Error("DNS configuration not loaded, the one before stays; correct the ConfigMap kube-system/coredns", "err", err)
		return nil
	case !told:
		s.cfg.Log.Error("DNS configuration not loaded; correct the ConfigMap kube-system/coredns", "err", err)
	}
	return s.fallBack(dns, env, err)
}

// fallBack gets DNS to run at a start with a configuration that does not load.
func (s *Server) fallBack(dns *instance, env surroundings, cause error) error {
	if dns.loadLastGood() == nil {
		s.cfg.Log.Warn("DNS runs with the last configuration that loaded")
		return nil
	}
	text, _, err := rewrite(DefaultCorefile(s.cfg.Domain), nil, env)
	if err == nil {
		err = dns.load(text)
	}
	if err != nil {
		return fmt.Errorf("start DNS: %w", errors.Join(cause, err))
	}
	s.cfg.Log.Warn("DNS runs with the built-in configuration")
	return nil
}

// publish puts this server behind the Service, trying until ctx ends.
func (s *Server) publish(ctx context.Context) bool {
	told := ""
	for {
		err := s.writeSlices(ctx)
		if err == nil {
			return true
		}
		if ctx.Err() == nil && told != err.Error() {
			s.cfg.Log.Warn("DNS server not behind its Service yet, trying again", "err", err)
			told = err.Error()
		}
		if !pause(ctx, retryPublic) {
			return false
		}
	}
}

func (s *Server) writeSlices(ctx context.Context) error {
	node, err := s.client.CoreV1().Nodes().Get(ctx, s.cfg.NodeName, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("read own node: %w", err)
	}
	force := true
	for _, addr := range s.cfg.Listen {
		slice := endpointSlice(s.cfg.NodeName, node.UID, addr)
		body, err := json.Marshal(slice)
		if err != nil {
			return fmt.Errorf("encode endpoint slice: %w", err)
		}
		_, err = s.client.DiscoveryV1().EndpointSlices(namespace).Patch(ctx, slice.Name, types.ApplyPatchType, body,
			metav1.PatchOptions{FieldManager: fieldManager, Force: &force})
		if err != nil {
			return fmt.Errorf("write endpoint slice: %w", err)
		}
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// configSource is the user's configuration as the API has it. All but the
// informers belong to the goroutine of Run.
type configSource struct {
	factories []informers.SharedInformerFactory
	informers []cache.SharedIndexInformer
	upstream  string // nameservers of the host when last looked at
	refused   string // what did not load, so that it is tried and told once
}

func (s *Server) watchConfig(trigger chan<- struct{}) (*configSource, error) {
	poke := func() {
		select {
		case trigger <- struct{}{}:
		default: // one is waiting already
		}
	}
	source := &configSource{}
	for _, name := range []string{configName, customName} {
		factory := informers.NewSharedInformerFactoryWithOptions(s.client, 0, informers.WithNamespace(namespace),
			informers.WithTweakListOptions(func(o *metav1.ListOptions) {
				o.FieldSelector = fields.OneTermEqualSelector(metav1.ObjectNameField, name).String()
			}))
		informer := factory.Core().V1().ConfigMaps().Informer()
		_, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc: func(any) { poke() }, UpdateFunc: func(_, _ any) { poke() }, DeleteFunc: func(any) { poke() },
		})
		if err != nil {
			return nil, fmt.Errorf("watch ConfigMap %s: %w", name, err)
		}
		source.factories = append(source.factories, factory)
		source.informers = append(source.informers, informer)
	}
	return source, nil
}

func (c *configSource) start(ctx context.Context) {
	for _, f := range c.factories {
		f.Start(ctx.Done())
	}
}

func (c *configSource) stop() {
	for _, f := range c.factories {
		f.Shutdown()
	}
}

func (c *configSource) waitSynced(ctx context.Context, limit time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return cache.WaitForCacheSync(ctx.Done(), c.informers[0].HasSynced, c.informers[1].HasSynced)
}

// current returns the user's Corefile, "" if there is none, and the snippets.
func (c *configSource) current() (corefile string, custom map[string]string) {
	if m := c.configMap(0, configName); m != nil {
		corefile = m.Data["Corefile"]
	}
	if m := c.configMap(1, customName); m != nil {
		custom = m.Data
	}
	return corefile, custom
}

func (c *configSource) configMap(i int, name string) *corev1.ConfigMap {
	obj, ok, err := c.informers[i].GetStore().GetByKey(namespace + "/" + name)
	if err != nil || !ok {
		return nil
	}
	m, _ := obj.(*corev1.ConfigMap)
	return m
}

func (c *configSource) noteUpstream(r resolver) { c.upstream = fmt.Sprint(r.servers) }
