package scenario

import (
	"math"
	"testing"
)

func TestBeyond(t *testing.T) {
	// Critical values of the usual tables.
	for _, c := range []struct {
		chi2    float64
		freedom int
		p       float64
	}{
		{3.841, 1, 0.05}, {5.991, 2, 0.05}, {7.815, 3, 0.05}, {9.488, 4, 0.05}, {11.070, 5, 0.05}, {20.515, 5, 0.001}, {18.307, 10, 0.05}, {0, 5, 1},
	} {
		if got := beyond(c.chi2, c.freedom); math.Abs(got-c.p) > 1e-4 {
			t.Errorf("beyond %v with %d: %v, want %v", c.chi2, c.freedom, got, c.p)
		}
	}
}

func TestUnevenness(t *testing.T) {
	if chi2, p, err := unevenness([]int{100, 100, 100}); chi2 != 0 || p != 1 || err != nil {
		t.Errorf("%v %v %v", chi2, p, err)
	}
	if chi2, p, err := unevenness([]int{200, 100, 0}); chi2 != 100*2 || p > 1e-40 || err != nil {
		t.Errorf("%v %v %v", chi2, p, err)
	}
	if _, _, err := unevenness([]int{0, 0}); err == nil {
		t.Error("nothing was compared")
	}
}
