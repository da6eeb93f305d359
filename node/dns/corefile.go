package dns

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/coredns/caddy/caddyfile"
)

// DefaultCorefile is the configuration a cluster starts with, for users to edit
// in the ConfigMap kube-system/coredns.
func DefaultCorefile(domain string) string {
	return fmt.Sprintf(`.:53 {
    errors
    kubernetes %[1]s in-addr.arpa ip6.arpa {
        pods insecure
        fallthrough in-addr.arpa ip6.arpa
        ttl 30
    }
    import custom/*.override
    forward . /etc/resolv.conf {
        max_concurrent 1000
    }
    cache 30 {
        disable success %[1]s
        disable denial %[1]s
    }
    loadbalance
}
import custom/*.server
`, domain)
}

// surroundings are what the daemon knows and a Corefile does not.
type surroundings struct {
	listen     []netip.Addr
	kubeconfig string
	upstream   []string // in place of the host's resolver configuration; none if it has no nameserver
}

// maxCorefile bounds what is parsed. A ConfigMap holds 1 MiB at most.
const maxCorefile = 1 << 20

// unsuited are plugins that must not run inside the daemon, with the reason.
func unsuited() map[string]string {
	return map[string]string{
		"loop":       "it ends the process when it finds a loop",
		"reload":     "the ConfigMap is watched",
		"debug":      "it lets a panic end the process",
		"health":     "it listens on a port of its own",
		"ready":      "it listens on a port of its own",
		"prometheus": "it listens on a port of its own",
		"pprof":      "it listens on a port of its own",
	}
}

// rewrite turns a user's Corefile into one for this node. It returns what it
// left out and why, for the log. custom holds the data of the ConfigMap
// coredns-custom.
func rewrite(corefile string, custom map[string]string, env surroundings) (out string, notes []string, err error) {
	text := includeCustom(corefile, custom)
	if len(text) > maxCorefile {
		return "", nil, fmt.Errorf("parse Corefile: %d bytes, at most %d", len(text), maxCorefile)
	}
	if err := checkImports(text); err != nil {
		return "", nil, err
	}
	blocks, err := caddyfile.Parse("Corefile", strings.NewReader(text), directives())
	if err != nil {
		return "", nil, fmt.Errorf("parse Corefile: %w", err)
	}
	if len(blocks) == 0 {
		return "", nil, errors.New("parse Corefile: no server block")
	}
	var b strings.Builder
	for _, block := range blocks {
		notes = append(notes, adapt(block.Tokens, env)...)
		if err := printBlock(&b, block); err != nil {
			return "", nil, err
		}
	}
	return b.String(), notes, nil
}

var customImport = regexp.MustCompile(`(?m)^[ \t]*import[ \t]+(?:[^\s"#{}]*/)?\*\.(override|server)[ \t]*$`) //nolint:gochecknoglobals // a compiled pattern, never changed

// includeCustom replaces the lines "import …*.override" and "import …*.server"
// by the entries of coredns-custom with that ending, in the order of their
// names: the convention of other distributions, where these are files.
func includeCustom(corefile string, custom map[string]string) string {
	return customImport.ReplaceAllStringFunc(corefile, func(line string) string {
		ending := ".override"
		if strings.Contains(line, "*.server") {
			ending = ".server"
		}
		var names []string
		for name := range custom {
			if strings.HasSuffix(name, ending) {
				names = append(names, name)
			}
		}
		slices.Sort(names)
		var b strings.Builder
		for _, name := range names {
			b.WriteString(custom[name])
			b.WriteByte('\n')
		}
		return b.String()
	})
}

// checkImports refuses imports of anything but snippets of the same text: the
// parser would read files of the host.
func checkImports(text string) error {
	tokens := caddyfile.NewDispenser("Corefile", strings.NewReader(text))
	snippets := map[string]bool{}
	var imports []string
	for tokens.Next() {
		switch word := tokens.Val(); {
		case len(word) > 2 && word[0] == '(' && word[len(word)-1] == ')':
			snippets[word[1:len(word)-1]] = true
		case word == "import":
			if !tokens.NextArg() {
				return fmt.Errorf("parse Corefile: line %d: import of nothing", tokens.Line())
			}
			imports = append(imports, tokens.Val())
		}
	}
	for _, name := range imports {
		if !snippets[name] {
			return fmt.Errorf("parse Corefile: import %s: only snippets of the Corefile, and *.override and *.server of coredns-custom, can be imported", name)
		}
	}
	return nil
}

// adapt changes one server block's directives for life inside the daemon.
func adapt(directives map[string][]caddyfile.Token, env surroundings) (notes []string) {
	for name, why := range unsuited() {
		if _, used := directives[name]; used {
			delete(directives, name)
			notes = append(notes, fmt.Sprintf("plugin %s left out: %s", name, why))
		}
	}
	slices.Sort(notes)
	if _, set := directives["bind"]; !set && len(env.listen) > 0 {
		bind := []caddyfile.Token{{Text: "bind", Line: 1}}
		for _, a := range env.listen {
			bind = append(bind, caddyfile.Token{Text: a.String(), Line: 1})
		}
		directives["bind"] = bind
	}
	delete(directives, waryName)
	if tokens, used := directives["kubernetes"]; used {
		directives["kubernetes"] = withKubeconfig(tokens, env.kubeconfig)
		directives[waryName] = waryOf(tokens)
	}
	if tokens, used := directives["forward"]; used {
		forward, dropped := withUpstream(tokens, env.upstream)
		if dropped {
			notes = append(notes, "plugin forward left out: the host has no nameserver")
		}
		if directives["forward"] = forward; len(forward) == 0 {
			delete(directives, "forward")
		}
	}
	return notes
}

// withKubeconfig tells the kubernetes plugin how to reach the API, unless the
// user did.
func withKubeconfig(tokens []caddyfile.Token, kubeconfig string) []caddyfile.Token {
	last := len(tokens) - 1
	for _, t := range tokens {
		if t.Text == "kubeconfig" || t.Text == "endpoint" {
			return tokens
		}
	}
	line := tokens[last].Line
	option := []caddyfile.Token{{Text: "kubeconfig", Line: line + 1}, {Text: kubeconfig, Line: line + 1}}
	if tokens[last].Text != "}" {
		return slices.Concat(tokens, []caddyfile.Token{{Text: "{", Line: line}}, option, []caddyfile.Token{{Text: "}", Line: line + 2}})
	}
	return slices.Concat(tokens[:last], option, []caddyfile.Token{{Text: "}", Line: line + 2}})
}

// waryOf is the directive of the wary plugin for the zones of the kubernetes
// plugin in the same block.
func waryOf(kubernetes []caddyfile.Token) []caddyfile.Token {
	out := []caddyfile.Token{{Text: waryName, Line: 1}}
	for i, t := range kubernetes {
		if i == 0 {
			continue
		}
		if t.Text == "{" || newLine(kubernetes[i-1], t) {
			break
		}
		out = append(out, caddyfile.Token{Text: t.Text, Line: 1})
	}
	return out
}

// withUpstream points the forward directives that name the host's resolver
// configuration at what it really leads to, and drops them when that is nothing.
func withUpstream(tokens []caddyfile.Token, upstream []string) (out []caddyfile.Token, dropped bool) {
	for _, directive := range splitDirectives("forward", tokens) {
		hostConf := slices.IndexFunc(directive, func(t caddyfile.Token) bool { return isHostResolvConf(t.Text) })
		if hostConf >= 0 && len(upstream) == 0 {
			dropped = true
			continue
		}
		for _, t := range directive {
			if !isHostResolvConf(t.Text) {
				out = append(out, t)
				continue
			}
			for _, to := range upstream {
				t.Text = to
				out = append(out, t)
			}
		}
	}
	return out, dropped
}

func isHostResolvConf(word string) bool { return slices.Contains(HostResolvConfs(), word) }
