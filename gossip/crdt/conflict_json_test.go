package crdt

import (
	"encoding/json"
	"reflect"
	"testing"
)

func TestConflictReadsBack(t *testing.T) {
	want := Conflict{
		Key: "/registry/configmaps/default/c", UID: "u", Path: ".data.a", Rule: RuleNewest,
		Lost: json.RawMessage(`"1"`), Kept: json.RawMessage(`"2"`),
		LostBy: Dot{Origin: 0xfedcba9876543210, Seq: 12}, KeptBy: Dot{Origin: 1, Seq: 1}, LostAt: 7, KeptAt: 9,
	}
	data, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	var got Conflict
	if err := json.Unmarshal(data, &got); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%s reads back as %+v, %v", data, got, err)
	}
	for _, bad := range []string{``, `1`, `x.1`, `1.x`, `0.1`, `1.0`, `1.2.3`} {
		if err := new(Dot).UnmarshalText([]byte(bad)); err == nil {
			t.Errorf("dot %q is accepted", bad)
		}
	}
}
