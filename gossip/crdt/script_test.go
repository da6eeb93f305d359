package crdt

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// TestScripts runs the scripts in testdata: blocks of commands, a line of four
// dashes, and what the commands print. MOOT_UPDATE=1 writes what they print now
// into the files.
//
//	load R OBJECT        put an object of testdata/objects
//	put R VALUE          put a value
//	edit R PATH=JSON ... put the object with places set; -PATH takes one away
//	delete R
//	forget R             forget a delete, as a replica does that knows all others have it
//	merge R S            merge what S holds into R
//	exchange R S ...     merge among all until nothing changes, check they agree
//	show R PATH ...
//	schema R older|none  the replica has another schema from now on
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			objects := sampleObjects(t)
			crd := objects["customresourcedefinition-shops.example.com"]
			s := &script{t: t, objects: objects, newer: newKinds(t, crd), older: newKinds(t, olderCRD(crd)), peers: map[string]*peer{}}
			got := s.run(string(data))
			if os.Getenv("MOOT_UPDATE") != "" {
				if err := os.WriteFile(file, []byte(got), 0o600); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got != string(data) {
				t.Errorf("%s prints\n%s", file, diffLines(string(data), got))
			}
		})
	}
}

func diffLines(want, got string) string {
	a, b := strings.Split(want, "\n"), strings.Split(got, "\n")
	var out strings.Builder
	for i := range max(len(a), len(b)) {
		var x, y string
		if i < len(a) {
			x = a[i]
		}
		if i < len(b) {
			y = b[i]
		}
		if x != y {
			fmt.Fprintf(&out, "line %d\n-%s\n+%s\n", i+1, x, y)
		}
	}
	return out.String()
}

type script struct {
	t            testing.TB
	objects      map[string][]byte
	newer, older Schema
	now          Stamp
	peers        map[string]*peer
	out          strings.Builder
}

// run returns the script with what its commands print now.
func (s *script) run(text string) string {
	var all strings.Builder
	for i, block := range strings.Split(strings.TrimRight(text, "\n"), "\n\n") {
		commands, _, runs := strings.Cut(block, "\n----")
		if i > 0 {
			all.WriteString("\n")
		}
		all.WriteString(commands + "\n")
		if !runs {
			continue
		}
		s.out.Reset()
		for line := range strings.SplitSeq(commands, "\n") {
			if !strings.HasPrefix(line, "#") {
				s.command(strings.Fields(line))
			}
		}
		all.WriteString("----\n" + s.out.String())
	}
	return all.String()
}

func (s *script) peer(name string) *peer {
	p, ok := s.peers[name]
	if !ok {
		p = &peer{origin: Origin(name[0]-'a') + 1, schema: s.newer}
		s.peers[name] = p
	}
	return p
}

func (s *script) put(p *peer, value []byte) {
	s.now++
	var held []byte
	if p.held != nil {
		held = p.held.Value
	}
	p.held = Put(p.held, []byte("k"), value, p.next(), s.now, DescribeChange(held, value, p.schema))
}

func (s *script) command(words []string) {
	if len(words) < 2 {
		s.t.Fatalf("bad command %q", words)
	}
	p, args := s.peer(words[1]), words[2:]
	switch words[0] {
	case "load":
		s.put(p, s.objects[args[0]])
	case "put":
		s.put(p, []byte(strings.Join(args, " ")))
	case "edit":
		n := parseObject(p.held.Value)
		for _, arg := range args {
			s.edit(n, arg)
		}
		s.put(p, n.append(nil))
	case "delete":
		s.now++
		p.held = Delete(p.held, []byte("k"), p.next(), s.now)
	case "forget":
		if !p.held.Deleted {
			s.t.Fatalf("%s holds something", words[1])
		}
		p.held = nil
	case "merge":
		fmt.Fprintln(&s.out, s.merge(p, s.peer(args[0]).held))
	case "exchange":
		s.exchange(words[1:])
	case "show":
		s.show(p, args)
	case "schema":
		p.schema = map[string]Schema{"older": s.older, "none": nil}[args[0]]
	default:
		s.t.Fatalf("unknown command %q", words[0])
	}
}

func (s *script) merge(p *peer, came *Record) Outcome {
	r, outcome, conflicts, err := Merge(p.held, came)
	if err != nil {
		s.t.Fatal(err)
	}
	if p.held != nil {
		back, _, _, err := Merge(came, p.held)
		if err != nil || !bytes.Equal(stateOf(s.t, back), stateOf(s.t, r)) {
			s.t.Errorf("merging the other way gives another state: %v", err)
		}
	}
	p.held = r
	for _, c := range conflicts {
		s.conflict(c)
	}
	return outcome
}

func stateOf(t testing.TB, r *Record) []byte {
	t.Helper()
	b, err := AppendState(nil, r)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (s *script) conflict(c Conflict) {
	value := func(v []byte) string {
		switch {
		case v == nil:
			return "nothing"
		case len(v) > 120:
			return fmt.Sprintf("%s… %d bytes", v[:60], len(v))
		}
		return string(v)
	}
	by := func(d Dot) string {
		if d.IsZero() {
			return "?"
		}
		return fmt.Sprintf("%c%d", 'a'+rune(d.Origin)-1, d.Seq)
	}
	fmt.Fprintf(&s.out, "%s %s: lost %s of %s, kept %s", c.Rule, or(c.Path, "object"), value(c.Lost), by(c.LostBy), value(c.Kept))
	if !c.KeptBy.IsZero() {
		fmt.Fprintf(&s.out, " of %s", by(c.KeptBy))
	}
	fmt.Fprintln(&s.out)
}

func or(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

func (s *script) exchange(names []string) {
	for changed := true; changed; {
		changed = false
		for _, x := range names {
			for _, y := range names {
				if x != y && s.peer(y).held != nil && s.merge(s.peer(x), s.peer(y).held) != Kept {
					changed = true
				}
			}
		}
	}
	want := stateOf(s.t, s.peer(names[0]).held)
	for _, name := range names {
		if !bytes.Equal(stateOf(s.t, s.peer(name).held), want) {
			s.t.Errorf("%s and %s do not agree", names[0], name)
		}
	}
}

func (s *script) show(p *peer, places []string) {
	switch {
	case p.held == nil || p.held.Deleted:
		fmt.Fprintln(&s.out, "nothing is there")
		return
	case len(places) == 0:
		fmt.Fprintf(&s.out, "%s\n", p.held.Value)
	}
	n := parseObject(p.held.Value)
	for _, place := range places {
		if v := s.find(n, s.split(place)); v != nil {
			fmt.Fprintf(&s.out, "%s: %s\n", place, v.append(nil))
		} else {
			fmt.Fprintf(&s.out, "%s: nothing\n", place)
		}
	}
}

var place = regexp.MustCompile(`\.([A-Za-z0-9_/:-]+)|\[(\+|[0-9]+|[a-zA-Z]+=[^\]]*)\]|\["([^"]*)"\]`)

// split cuts .spec.containers[name=web]["x.y"] into its parts.
func (s *script) split(path string) []string {
	var parts []string
	end := 0
	for _, m := range place.FindAllStringSubmatchIndex(path, -1) {
		if m[0] != end {
			break
		}
		end = m[1]
		for g := 2; g < len(m); g += 2 {
			if m[g] >= 0 {
				prefix := []string{".", "[", "."}[g/2-1]
				parts = append(parts, prefix+path[m[g]:m[g+1]])
			}
		}
	}
	if end != len(path) {
		s.t.Fatalf("bad place %q", path)
	}
	return parts
}

func (s *script) find(n *node, parts []string) *node {
	for _, part := range parts {
		if n == nil {
			return nil
		}
		if part[0] == '.' {
			n = n.get(part[1:])
			continue
		}
		i := index(n, part[1:])
		if i < 0 {
			return nil
		}
		n = n.items[i]
	}
	return n
}

func index(n *node, which string) int {
	if key, value, ok := strings.Cut(which, "="); ok {
		return slices.IndexFunc(n.items, func(item *node) bool {
			v := item.get(key)
			return v != nil && (v.text() == value || string(v.raw) == value)
		})
	}
	i, err := strconv.Atoi(which)
	if err != nil || i >= len(n.items) {
		return -1
	}
	return i
}

func (s *script) edit(n *node, arg string) {
	if path, ok := strings.CutPrefix(arg, "-"); ok {
		parts := s.split(path)
		last := parts[len(parts)-1]
		at := s.find(n, parts[:len(parts)-1])
		if last[0] == '.' {
			at.set(last[1:], nil)
		} else {
			i := index(at, last[1:])
			at.items = slices.Delete(slices.Clone(at.items), i, i+1)
		}
		return
	}
	cut := 0
	for m := place.FindStringIndex(arg[cut:]); m != nil && m[0] == 0; m = place.FindStringIndex(arg[cut:]) {
		cut += m[1]
	}
	parts := s.split(arg[:cut])
	value := parse([]byte(strings.TrimPrefix(arg[cut:], "=")))
	if value == nil || arg[cut] != '=' {
		s.t.Fatalf("bad edit %q", arg)
	}
	for i, part := range parts[:len(parts)-1] {
		next := s.find(n, []string{part})
		if next == nil && part[0] == '.' {
			next = &node{kind: object}
			if parts[i+1][0] == '[' {
				next = &node{kind: list}
			}
			n.set(part[1:], next)
		}
		if n = next; n == nil {
			s.t.Fatalf("nothing is at %q of %q", part, arg)
		}
	}
	switch last := parts[len(parts)-1]; {
	case last[0] == '.':
		n.set(last[1:], value)
	case last == "[+":
		n.items = append(slices.Clone(n.items), value)
	default:
		n.items[index(n, last[1:])] = value
	}
}
