package dns

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/coredns/caddy/caddyfile"
)

func testSurroundings() surroundings {
	return surroundings{
		listen:     []netip.Addr{netip.MustParseAddr("10.42.0.1")},
		kubeconfig: "/var/lib/moot/dns.kubeconfig",
		upstream:   []string{"/run/systemd/resolve/resolv.conf"},
	}
}

func parsed(t *testing.T, corefile string) []caddyfile.ServerBlock {
	t.Helper()
	blocks, err := caddyfile.Parse("Corefile", strings.NewReader(corefile), nil)
	if err != nil {
		t.Fatalf("rewritten Corefile does not parse: %v\n%s", err, corefile)
	}
	return blocks
}

func words(tokens []caddyfile.Token) []string {
	var out []string
	for _, t := range tokens {
		out = append(out, t.Text)
	}
	return out
}

func TestRewriteDefault(t *testing.T) {
	out, notes, err := rewrite(DefaultCorefile("cluster.local"), nil, testSurroundings())
	if err != nil || len(notes) != 0 {
		t.Fatalf("notes %v, err %v", notes, err)
	}
	blocks := parsed(t, out)
	if len(blocks) != 1 {
		t.Fatalf("%d server blocks:\n%s", len(blocks), out)
	}
	for directive, want := range map[string]string{
		"bind":       "bind 10.42.0.1",
		"forward":    "forward . /run/systemd/resolve/resolv.conf { max_concurrent 1000 }",
		"kubernetes": "kubernetes cluster.local in-addr.arpa ip6.arpa { pods insecure fallthrough in-addr.arpa ip6.arpa ttl 30 kubeconfig /var/lib/moot/dns.kubeconfig }",
		"cache":      "cache 30 { disable success cluster.local disable denial cluster.local }",
	} {
		if got := strings.Join(words(blocks[0].Tokens[directive]), " "); got != want {
			t.Errorf("%s:\n got %s\nwant %s", directive, got, want)
		}
	}
}

func TestRewriteStockCorefile(t *testing.T) {
	const stock = `.:53 {
    errors
    health {
       lameduck 5s
    }
    ready
    kubernetes cluster.local
    prometheus :9153
    forward . /etc/resolv.conf
    forward example.com 192.0.2.1
    loop
    reload
}`
	out, notes, err := rewrite(stock, nil, testSurroundings())
	if err != nil {
		t.Fatal(err)
	}
	if len(notes) != 5 {
		t.Errorf("notes %q, want five plugins left out", notes)
	}
	block := parsed(t, out)[0]
	for name := range unsuited() {
		if _, there := block.Tokens[name]; there {
			t.Errorf("plugin %s is still there", name)
		}
	}
	if got := words(block.Tokens["kubernetes"]); !slices.Equal(got, []string{"kubernetes", "cluster.local", "{", "kubeconfig", "/var/lib/moot/dns.kubeconfig", "}"}) {
		t.Errorf("kubernetes %q", got)
	}

	env := testSurroundings()
	env.upstream = []string{"192.0.2.7", "2001:db8::7"}
	if out, _, err = rewrite("a.test {\n forward . /etc/resolv.conf {\n prefer_udp\n }\n}", nil, env); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(words(parsed(t, out)[0].Tokens["forward"]), " "); got != "forward . 192.0.2.7 2001:db8::7 { prefer_udp }" {
		t.Errorf("forward to nameservers: %q", got)
	}
	env.upstream = nil
	out, notes, err = rewrite(stock, nil, env)
	if err != nil || !slices.ContainsFunc(notes, func(n string) bool { return strings.Contains(n, "no nameserver") }) {
		t.Fatalf("notes %q, err %v", notes, err)
	}
	if got := strings.Join(words(parsed(t, out)[0].Tokens["forward"]), " "); got != "forward example.com 192.0.2.1" {
		t.Errorf("forward without a host nameserver: %q", got)
	}
}

func TestRewriteKeepsTheUsersChoices(t *testing.T) {
	out, _, err := rewrite(".:53 {\n bind 10.9.9.9\n kubernetes cluster.local {\n kubeconfig /mine\n }\n}", nil, testSurroundings())
	if err != nil {
		t.Fatal(err)
	}
	tokens := parsed(t, out)[0].Tokens
	if got := words(tokens["bind"]); !slices.Equal(got, []string{"bind", "10.9.9.9"}) {
		t.Errorf("bind %q", got)
	}
	if strings.Contains(out, testSurroundings().kubeconfig) {
		t.Error("a second kubeconfig was added")
	}
}

func TestCustomSnippets(t *testing.T) {
	custom := map[string]string{
		"b.override": "rewrite name b.test c.test",
		"a.override": "hosts {\n 192.0.2.7 a.test\n fallthrough\n}",
		"x.server":   "corp.test:53 {\n forward . 192.0.2.53\n}",
		"notes.txt":  "not for here {",
	}
	out, _, err := rewrite(DefaultCorefile("cluster.local"), custom, testSurroundings())
	if err != nil {
		t.Fatal(err)
	}
	blocks := parsed(t, out)
	if len(blocks) != 2 || blocks[1].Keys[0] != "corp.test:53" {
		t.Fatalf("blocks:\n%s", out)
	}
	if len(blocks[0].Tokens["hosts"]) == 0 || len(blocks[0].Tokens["rewrite"]) == 0 || len(blocks[1].Tokens["bind"]) == 0 {
		t.Errorf("snippets are not all in:\n%s", out)
	}
	for _, path := range []string{"/etc/coredns/custom/*.override", "*.override"} {
		if got := includeCustom("import "+path+"\n", custom); !strings.Contains(got, "a.test") {
			t.Errorf("import %s: %q", path, got)
		}
	}
}

func TestRewriteRefuses(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("whoami"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, corefile := range map[string]string{
		"host file":         ".:53 {\n import " + secret + "\n}",
		"host glob":         "import /etc/*\n.:53 {\n errors\n}",
		"import of nothing": ".:53 {\n import\n}",
		"unknown plugin":    ".:53 {\n nosuchplugin\n}",
		"unclosed block":    ".:53 {\n errors\n",
		"empty":             "",
		"comment only":      "# nothing\n",
		"huge":              strings.Repeat("#", maxCorefile+1),
	} {
		t.Run(name, func(t *testing.T) {
			if out, _, err := rewrite(corefile, nil, testSurroundings()); err == nil {
				t.Fatalf("accepted:\n%s", out)
			}
		})
	}
}

func TestRewriteTakesItsOwnSnippets(t *testing.T) {
	out, _, err := rewrite("(common) {\n errors\n loadbalance\n}\n.:53 {\n import common\n}", nil, testSurroundings())
	if err != nil || len(parsed(t, out)[0].Tokens["loadbalance"]) == 0 {
		t.Fatalf("%v\n%s", err, out)
	}
}

// FuzzRewrite holds that what comes out parses, means the same when rewritten
// again, and lost every unsuited plugin.
func FuzzRewrite(f *testing.F) {
	f.Add(DefaultCorefile("cluster.local"), "hosts {\n 192.0.2.7 a.test\n}")
	f.Add(".:53 {\n template IN A {\n answer \"{{ .Name }} 60 IN A 192.0.2.1\"\n }\n debug\n}", "")
	f.Add("a b, c {\n log \"x\\\" # y\"\n forward . /etc/resolv.conf\n forward . 192.0.2.1 {\n prefer_udp\n }\n}", "errors")
	f.Fuzz(func(t *testing.T, corefile, custom string) {
		env := testSurroundings()
		once, _, err := rewrite(corefile, map[string]string{"x.override": custom}, env)
		if err != nil {
			return
		}
		twice, notes, err := rewrite(once, nil, env)
		if err != nil {
			t.Fatalf("the result is refused: %v\n%s", err, once)
		}
		if len(notes) > 0 {
			t.Fatalf("left for the second time: %q\n%s", notes, once)
		}
		shape := func(text string) (out []map[string][]string) {
			for _, b := range parsed(t, text) {
				m := map[string][]string{"": b.Keys}
				for name, tokens := range b.Tokens {
					m[name] = words(tokens)
				}
				out = append(out, m)
			}
			return out
		}
		if a, b := shape(once), shape(twice); !reflect.DeepEqual(a, b) {
			t.Fatalf("rewriting is not stable:\n%s\n%s", once, twice)
		}
	})
}

func TestPickResolver(t *testing.T) {
	dir := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	stub := file("stub", "# made by a stub\nnameserver 127.0.0.53\noptions edns0\n")
	real1 := file("real", "nameserver 192.0.2.1\nnameserver fe80::1%eth0\nnameserver junk\nsearch a.test\n")
	empty := file("empty", "search a.test\n")
	for name, tc := range map[string]struct {
		files []string
		want  string
	}{
		"behind the stub": {[]string{stub, real1}, real1},
		"plain":           {[]string{real1, stub}, real1},
		"stub alone":      {[]string{stub, filepath.Join(dir, "missing")}, stub},
		"none":            {[]string{empty, filepath.Join(dir, "missing")}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			r, ok := pickResolver(tc.files, nil)
			if r.path != tc.want || ok != (tc.want != "") {
				t.Fatalf("picked %+v, %v, want %q", r, ok, tc.want)
			}
		})
	}
	clusterDNS := netip.MustParseAddr("10.43.0.10")
	both, itself := file("both", "nameserver 10.43.0.10\nnameserver 192.0.2.1\n"), file("itself", "nameserver 10.43.0.10\n")
	for path, want := range map[string]string{real1: "[" + real1 + "] true", both: "[192.0.2.1] true", itself: "[] false"} {
		r, ok := pickResolver([]string{path}, []netip.Addr{clusterDNS})
		if got := fmt.Sprint(r.upstream(), ok); ok && got != want || !ok && want != "[] false" {
			t.Errorf("of %s it asks %s, want %s", path, got, want)
		}
	}
	if path, err := PodResolvConf([]string{stub, real1}, dir, clusterDNS); err != nil || path != real1 {
		t.Errorf("pods get %s, %v, want %s", path, err, real1)
	}
	path, err := PodResolvConf([]string{stub}, filepath.Join(dir, "made"), clusterDNS)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != "nameserver 10.43.0.10\n" {
		t.Errorf("made for pods: %q, %v", got, err)
	}
}
