package gossip

// Elect returns the leader among the members: the live one with the oldest
// birth, the name breaking ties. It is sticky by construction: a member that
// joins is younger, whatever its clock said when it started (birth.go), and one
// that restarts is born anew. A suspected member keeps the lead until it is
// declared dead, since moving it costs more than waiting; one that is restarting
// has given it up.
func Elect(members []Member) (leader Member, ok bool) {
	for _, m := range members {
		if m.State != StateAlive && m.State != StateSuspect {
			continue
		}
		if !ok || m.Birth < leader.Birth || m.Birth == leader.Birth && m.Name < leader.Name {
			leader, ok = m, true
		}
	}
	return leader, ok
}
