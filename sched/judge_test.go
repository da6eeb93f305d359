package sched

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"
)

var testRules = rules{brakeFor: 5 * time.Minute, brakeWindow: 5 * time.Second, startupGrace: time.Minute}

// at is a moment of the tests' time.
func at(seconds float64) time.Time {
	return time.Unix(1_800_000_000, 0).Add(time.Duration(seconds * float64(time.Second)))
}

// parse reads members and marks: "n1 dead@-3 marked@-2 n2 alive …".
func parseMembers(t *testing.T, text string) ([]NodeHealth, map[string]time.Time) {
	t.Helper()
	var members []NodeHealth
	marked := map[string]time.Time{}
	for word := range strings.FieldsSeq(text) {
		word, seconds, _ := strings.Cut(word, "@")
		var when float64
		if seconds != "" {
			if _, err := fmt.Sscan(seconds, &when); err != nil {
				t.Fatalf("%s: %v", word, err)
			}
		}
		last := len(members) - 1
		switch word {
		case "alive", "suspect", "restarting", "dead", "left":
			members[last].State, members[last].Since = NodeState(word), at(when)
		case "until":
			members[last].Until = at(when)
		case "marked":
			marked[members[last].Name] = at(when)
		case "unheard":
			members[last].Unheard = true
		case "kubelet-down":
			members[last].KubeletDown = true
		default:
			members = append(members, NodeHealth{Name: word})
		}
	}
	return members, marked
}

func TestJudge(t *testing.T) {
	tests := []struct {
		name    string
		members string
		want    string // of those that are not kept: name:verdict, + when unready
	}{
		{"all well", "n1 alive n2 alive n3 alive", ""},
		{"one is silent", "n1 alive n2 suspect@-1 n3 alive", "n2:doubt+"},
		{"one of three dies", "n1 alive n2 dead n3 alive", "n2:evict+"},
		{"one of two dies: half is not more than half", "n1 alive n2 dead", "n2:evict+"},
		{"one of two is silent", "n1 alive n2 suspect", "n2:doubt+"},
		{"two of three at once", "n1 alive n2 dead@-3 n3 dead@-3", "n2:hold+ n3:hold+"},
		{"four of five at once", "n1 alive n2 dead@-3 n3 dead@-3 n4 dead@-3 n5 dead@-3", "n2:hold+ n3:hold+ n4:hold+ n5:hold+"},
		{"two of five at once", "n1 alive n2 alive n3 alive n4 dead n5 dead", "n4:evict+ n5:evict+"},
		{"the first is declared dead while the rest is still suspect", "n1 alive n2 dead@-2.5 n3 suspect@-2.5", "n2:hold+ n3:doubt+"},
		{"at first the endpoints of most members stay", "n1 alive n2 suspect@-1 n3 suspect@-1.5", "n2:doubt n3:doubt"},
		{"those of fewer do not", "n1 alive n2 alive n3 suspect@0", "n3:doubt+"},
		{"one after the other: the last of five, each given up before", "n1 alive n2 dead@-30 marked@-30 n3 dead@-20 marked@-20 n4 dead@-10 marked@-10 n5 dead", "n2:evict+ n3:evict+ n4:evict+ n5:evict+"},
		{"one after the other, one is only silent yet", "n1 alive n2 dead@-30 marked@-30 n3 suspect@-1", "n2:evict+ n3:doubt+"},
		{"the second soon after the first is given up: both are held", "n1 alive n2 dead@-2 marked@-2 n3 dead", "n2:hold+ n3:hold"},
		{"a blink soon after: what is given up stays so", "n1 alive n2 dead@-2 marked@-2 n3 suspect@-1", "n2:evict+ n3:doubt"},
		{"five seconds are enough for a second death", "n1 alive n2 dead@-6 marked@-6 n3 dead", "n2:evict+ n3:evict+"},
		{"the brake gives up after a time", "n1 alive n2 dead@-301 n3 dead@-299", "n2:evict+ n3:evict+"},
		{"and not before", "n1 alive n2 dead@-299 n3 dead@-298", "n2:hold+ n3:hold+"},
		{"when enough are back the rest is given up", "n1 alive n2 dead@-60 n3 alive@-1", "n2:evict+"},
		{"restarting", "n1 alive n2 restarting@-10 until@50 n3 alive", "n2:wait"},
		{"restarting too long", "n1 alive n2 restarting@-70 until@-1 n3 alive", "n2:evict+"},
		{"all others restart", "n1 alive n2 restarting until@50 n3 restarting until@40", "n2:wait n3:wait"},
		{"two restart too long", "n1 alive n2 restarting@-70 until@-2 n3 restarting@-70 until@-2", "n2:hold+ n3:hold+"},
		{"left", "n1 alive n2 left n3 left", "n2:remove n3:remove"},
		{"who left does not count", "n1 alive n2 left n3 left n4 dead", "n2:remove n3:remove n4:evict+"},
		{"kubelet down", "n1 alive n2 alive kubelet-down", "n2:abandon"},
		{"not heard of yet", "n1 alive n2 dead@-20 unheard", "n2:expect+"},
		{"not heard of for long", "n1 alive n2 dead@-61 unheard", "n2:evict+"},
		{"not heard of for long, with others", "n1 alive n2 dead@-61 unheard n3 dead@-61 unheard", "n2:hold+ n3:hold+"},
		{"not heard of, given up by the last leader", "n1 alive n2 dead@-1 unheard marked@-600", "n2:evict+"},
		{"many: the window is wider", manyDead(20, 12, -9), "held"},
		{"many, but long ago", manyDead(20, 12, -11), "given up"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			members, marked := parseMembers(t, tt.members)
			judged := judge(at(0), testRules, members, marked)
			if len(judged) != len(members) {
				t.Fatalf("%d judgements of %d members", len(judged), len(members))
			}
			if got := show(judged); got != tt.want && !manyMatch(judged, tt.want) {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

// manyDead are n members of which dead died and were given up at the given
// time, but for the last, which died just now.
func manyDead(n, dead int, when float64) string {
	var words []string
	for i := range n {
		switch {
		case i < dead-1:
			words = append(words, fmt.Sprintf("m%d dead@%g marked@%g", i, when, when))
		case i == dead-1:
			words = append(words, fmt.Sprintf("m%d dead@0", i))
		default:
			words = append(words, fmt.Sprintf("m%d alive", i))
		}
	}
	return strings.Join(words, " ")
}

func manyMatch(judged map[string]judgement, want string) bool {
	names, _ := held(judged)
	return want == "held" && len(names) == 12 || want == "given up" && len(names) == 0
}

func show(judged map[string]judgement) string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(judged)) {
		j := judged[name]
		if j.verdict == VerdictKeep {
			continue
		}
		mark := ""
		if j.unready {
			mark = "+"
		}
		out = append(out, name+":"+string(j.verdict)+mark)
	}
	return strings.Join(out, " ")
}

// A judgement that changes with time alone says when: looked at again only at
// those moments, every node is judged as if it were looked at all the time.
func TestJudgeSaysWhenToLookAgain(t *testing.T) {
	for _, text := range []string{
		"n1 alive n2 dead@-3 n3 dead@-3",
		"n1 alive n2 dead@-2 marked@-2 n3 dead",
		"n1 alive n2 dead@-2 marked@-2 n3 suspect@-1",
		"n1 alive n2 restarting@-10 until@50 n3 alive",
		"n1 alive n2 restarting@-10 until@50 n3 restarting@-10 until@45",
		"n1 alive n2 dead@-20 unheard",
		"n1 alive n2 dead@-20 unheard n3 dead@-20 unheard",
		"n1 alive n2 suspect@-0.5 n3 suspect@-0.2",
	} {
		members, marked := parseMembers(t, text)
		last := judge(at(0), testRules, members, marked)
		for ms := 0; ms < 400_000; ms += 10 {
			now := at(float64(ms) / 1000)
			judged := judge(now, testRules, members, marked)
			isDue := false
			for _, j := range last {
				isDue = isDue || !j.until.IsZero() && !now.Before(j.until)
			}
			if show(judged) != show(last) && !isDue {
				t.Errorf("%s: at %.2fs %s became %s, unannounced", text, float64(ms)/1000, show(last), show(judged))
			}
			if isDue {
				last = judged
			}
			for name, j := range judged {
				if !j.until.IsZero() && !j.until.After(now) {
					t.Fatalf("%s: at %.2fs %s is to be looked at again in the past", text, float64(ms)/1000, name)
				}
			}
		}
	}
}

// Crashes one after the other are all acted upon, down to one node, whoever
// leads meanwhile: what was done is read from the Nodes.
func TestJudgeOneAfterTheOther(t *testing.T) {
	const n = 7
	members := make([]NodeHealth, n)
	for i := range members {
		members[i] = NodeHealth{Name: fmt.Sprint("n", i), State: NodeAlive, Since: at(0)}
	}
	marked := map[string]time.Time{}
	now := at(10)
	for i := range n - 1 {
		members[i].State, members[i].Since = NodeSuspect, now
		if j := judge(now, testRules, members, marked)[members[i].Name]; j.verdict != VerdictDoubt || !j.unready {
			t.Fatalf("%d of %d silent: %+v", i+1, n, j)
		}
		now = now.Add(3 * time.Second)
		members[i].State, members[i].Since = NodeDead, now
		for name, j := range judge(now, testRules, members, marked) {
			if _, is := marked[name]; j.verdict == VerdictEvict && !is {
				marked[name] = now
			}
		}
		if len(marked) != i+1 {
			t.Fatalf("after %d deaths %d are given up", i+1, len(marked))
		}
		now = now.Add(5 * time.Second)
	}
}
