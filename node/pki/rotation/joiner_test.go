package rotation

import (
	"slices"
	"testing"
)

// Whoever lets a machine in may be a stage behind, and the machine may be away
// for as long as it likes between that and its first start: the rotation waits
// for it where its keys still do.
func TestJoinerOfAMemberThatIsBehind(t *testing.T) {
	for _, at := range []Stage{StageTrust, StageIssue, StageDrop} {
		t.Run(string(at), func(t *testing.T) {
			c := newReplicas(t, "n1", "n2", "n3")
			c.rotate("n1")
			if at != StageTrust {
				c.reach(StageTrust)
			}
			if at == StageDrop {
				c.reach(StageIssue)
			}
			c.step("n1", "n3") // the leader has written the stage, and n2 does not know
			c.step("n1")
			if s := c.status("n1"); s.Stage != at {
				t.Fatalf("stage %s", s.Stage)
			}
			c.admit("n4", "n2")
			for range 5 {
				c.sync()
				c.step("n1", "n2", "n3")
				c.wantWhole()
			}
			if s := c.status("n1"); s.Stage != at || !slices.Equal(s.Waiting, []string{"n4"}) {
				t.Fatalf("without n4: %+v", s)
			}
			c.begin("n4", "n3")
			c.reach(StageDone)
			c.wantWhole()
			c.wantNewKeysAlone()
		})
	}
}

// A joiner fills its replica from whom it likes, who may be behind the one that
// let it in: what the record says there is over for the joiner.
func TestJoinerIsAheadOfItsReplica(t *testing.T) {
	for _, at := range []Stage{StageTrust, StageIssue} {
		t.Run(string(at), func(t *testing.T) {
			c := newReplicas(t, "n1", "n2", "n3")
			c.rotate("n1")
			c.reach(at)
			c.step("n1") // on to the next
			c.pull("n2", "n1")
			c.step("n1", "n2")
			c.pull("n1", "n2") // n2's word, and not that of n4, which comes now
			c.admit("n4", "n2")
			c.begin("n4", "n3")
			c.step("n4")
			c.pull("n3", "n1")
			c.step("n3")
			c.pull("n1", "n3")
			c.step("n1", "n1") // all that n1 knows of have taken it
			if s := c.status("n1"); s.Stage != at.next().next() {
				t.Fatalf("stage %s", s.Stage)
			}
			c.wantWhole()
			c.reach(StageDone)
			c.wantWhole()
			c.wantNewKeysAlone()
		})
	}
}

// So it is when the record there is of the rotation before.
func TestJoinerIsARotationAheadOfItsReplica(t *testing.T) {
	c := newReplicas(t, "n1", "n2", "n3")
	c.rotate("n1")
	c.reach(StageDrop)
	c.step("n1") // it has ended, which n3 does not know
	c.rotate("n1")
	c.pull("n2", "n1")
	c.step("n1", "n2")
	c.pull("n1", "n2")
	c.admit("n4", "n2")
	c.begin("n4", "n3")
	c.step("n4")
	c.pull("n3", "n1")
	c.step("n3")
	c.pull("n1", "n3")
	c.step("n1", "n1")
	if s := c.status("n1"); s.Stage != StageIssue {
		t.Fatalf("stage %s", s.Stage)
	}
	c.wantWhole()
	c.reach(StageDone)
	c.wantWhole()
	c.wantNewKeysAlone()
}

// A member's word that it has taken a stage comes after the machines that it let
// in before: the leader must not see the word without them, however the two
// reach it while it looks.
func TestJoinerComesWhileTheLeaderLooks(t *testing.T) {
	c := newReplicas(t, "n1", "n2")
	c.rotate("n1")
	c.step("n1")
	c.admit("n3", "n2")
	c.pull("n2", "n1")
	c.step("n2")
	c.members["n1"].listed = func() { c.pull("n1", "n2") }
	c.step("n1", "n1", "n1", "n1")
	if s := c.status("n1"); s.Stage != StageTrust || !slices.Equal(s.Waiting, []string{"n3"}) {
		t.Errorf("without n3: %+v", s)
	}
	c.wantWhole()
}

// What a machine that is gone said by its name is not the word of the next one.
func TestJoinerHasANameThatWasUsedBefore(t *testing.T) {
	c := newReplicas(t, "n1", "n2", "n3")
	c.rotate("n1")
	c.reach(StageTrust)
	c.step("n1")
	c.pull("n3", "n1")
	c.step("n1", "n3")
	c.pull("n1", "n3") // n3's word that it has changed to the new keys, and then it is gone
	c.remove("n3", "n1")
	c.pull("n2", "n1")
	c.admit("n3", "n2") // which has not changed yet
	c.step("n2")
	c.pull("n1", "n2")
	c.step("n1", "n1")
	if s := c.status("n1"); s.Stage != StageIssue || !slices.Equal(s.Waiting, []string{"n3"}) {
		t.Errorf("with n3 not started: %+v", s)
	}
	c.wantWhole()
	c.begin("n3", "n1")
	c.reach(StageDone)
	c.wantWhole()
	c.wantNewKeysAlone()
}
