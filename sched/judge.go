package sched

import (
	"slices"
	"strings"
	"time"
)

// rules are the settings that [judge] goes by.
type rules struct {
	brakeFor, brakeWindow, startupGrace time.Duration
}

const (
	// windowPerMember widens the brake's window: the more members there are,
	// the longer it takes to find out about all of them.
	windowPerMember = 500 * time.Millisecond
	// doubtSettles is how long most of the members must be silent before their
	// pods leave the endpoints. It is more likely that this node was paused.
	doubtSettles = 2 * time.Second
)

// judgement is what becomes of one node.
type judgement struct {
	verdict Verdict
	// unready: its pods are to be out of the endpoints.
	unready bool
	// until is when the judgement changes if nothing else does; zero: never.
	until time.Time
}

// judge decides about every member. Marked says which nodes are given up
// already, and since when: it is read from the Node objects, so that the next
// leader knows what the last one did.
//
// The brake compares those that are gone with those that were there before:
// members given up longer ago than the window are neither. So crashes one after
// the other all count, down to the last node, and a cut that takes most of the
// members away at once does not. Suspects count as gone, or the first to be
// declared dead would be given up before the others are.
func judge(now time.Time, r rules, members []NodeHealth, marked map[string]time.Time) map[string]judgement {
	window := max(r.brakeWindow, windowPerMember*time.Duration(len(members)))
	out := make(map[string]judgement, len(members))
	var open []NodeHealth // dead, and whether to give them up is the question
	present, silent := 0, 0
	for _, m := range members {
		m = afterRestart(now, m)
		switch m.State {
		case NodeLeft:
			out[m.Name] = judgement{verdict: VerdictRemove}
			continue
		case NodeDead:
			if at, ok := marked[m.Name]; ok && now.Sub(at) >= window || now.Sub(m.Since) >= r.brakeFor+r.startup(m) {
				out[m.Name] = judgement{verdict: VerdictEvict, unready: true}
				continue
			}
			open = append(open, m)
		case NodeSuspect:
			silent++
			out[m.Name] = judgement{verdict: VerdictDoubt, unready: true}
		case NodeRestarting:
			out[m.Name] = judgement{verdict: VerdictWait, until: m.Until}
		default:
			out[m.Name] = judgeLive(m)
		}
		present++
	}
	brake, recall := 2*(silent+len(open)) > present, 2*len(open) > present
	for _, m := range open {
		at, isMarked := marked[m.Name]
		out[m.Name] = r.judgeDead(now, m, isMarked && !recall, brake)
		if isMarked {
			soonest(out, m.Name, at.Add(window))
		}
	}
	if brake {
		settle(now, members, out)
	}
	return out
}

// afterRestart is m, which counts as dead once the time it asked for is over.
func afterRestart(now time.Time, m NodeHealth) NodeHealth {
	if m.State == NodeRestarting && !now.Before(m.Until) {
		m.State, m.Since = NodeDead, m.Until
	}
	return m
}

func judgeLive(m NodeHealth) judgement {
	if m.KubeletDown {
		return judgement{verdict: VerdictAbandon}
	}
	return judgement{verdict: VerdictKeep}
}

// startup is what m gets on top because it was never heard of.
func (r rules) startup(m NodeHealth) time.Duration {
	if m.Unheard {
		return r.startupGrace
	}
	return 0
}

func (r rules) judgeDead(now time.Time, m NodeHealth, given, brake bool) judgement {
	hold := judgement{verdict: VerdictHold, unready: true, until: m.Since.Add(r.brakeFor + r.startup(m))}
	if given {
		return judgement{verdict: VerdictEvict, unready: true}
	}
	if starts := m.Since.Add(r.startup(m)); now.Before(starts) {
		return judgement{verdict: VerdictExpect, unready: true, until: starts}
	}
	if brake {
		return hold
	}
	return judgement{verdict: VerdictEvict, unready: true}
}

// settle lets the endpoints of the silent be for a moment.
func settle(now time.Time, members []NodeHealth, out map[string]judgement) {
	for _, m := range members {
		j := out[m.Name]
		if j.verdict != VerdictDoubt && j.verdict != VerdictHold && j.verdict != VerdictExpect {
			continue
		}
		if at := m.Since.Add(doubtSettles); now.Before(at) {
			j.unready = false
			out[m.Name] = j
			soonest(out, m.Name, at)
		}
	}
}

// soonest brings the time of the next look at a node forward.
func soonest(out map[string]judgement, name string, at time.Time) {
	j := out[name]
	if j.until.IsZero() || at.Before(j.until) {
		j.until = at
		out[name] = j
	}
}

// held lists the nodes that the brake holds, in order, and when it gives up on
// the first of them.
func held(judged map[string]judgement) (names []string, until time.Time) {
	for name, j := range judged {
		if j.verdict != VerdictHold {
			continue
		}
		names = append(names, name)
		if until.IsZero() || j.until.Before(until) {
			until = j.until
		}
	}
	slices.SortFunc(names, strings.Compare)
	return names, until
}
