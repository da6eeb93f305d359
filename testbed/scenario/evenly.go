package scenario

import (
	"errors"
	"math"
)

// unevenness is Pearson's chi-square of how often each of several was chosen,
// against all alike, and the probability that chance alone gives one as large.
func unevenness(counts []int) (chi2, p float64, err error) {
	sum := 0
	for _, n := range counts {
		sum += n
	}
	if len(counts) < 2 || sum == 0 {
		return 0, 0, errors.New("nothing to compare")
	}
	want := float64(sum) / float64(len(counts))
	for _, n := range counts {
		chi2 += (float64(n) - want) * (float64(n) - want) / want
	}
	return chi2, beyond(chi2, len(counts)-1), nil
}

// beyond is the upper tail of the chi-square distribution, by its closed forms
// for even and odd degrees of freedom (Abramowitz and Stegun 26.4.4 and 26.4.5).
func beyond(chi2 float64, freedom int) float64 {
	if chi2 <= 0 {
		return 1
	}
	half := chi2 / 2
	if freedom%2 == 0 {
		term, sum := 1.0, 1.0
		for i := 1; i < freedom/2; i++ {
			term *= half / float64(i)
			sum += term
		}
		return math.Exp(-half) * sum
	}
	term, sum := math.Sqrt(chi2), 0.0
	for i := 1; i <= (freedom-1)/2; i++ {
		sum += term
		term *= chi2 / float64(2*i+1)
	}
	return math.Erfc(math.Sqrt(half)) + math.Sqrt(2/math.Pi)*math.Exp(-half)*sum
}
