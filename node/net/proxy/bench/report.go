package main

import (
	"fmt"
	"slices"
	"time"
)

// row is all that was measured with some number of Services.
type row struct {
	services int
	sides    []*figures
}

// report prints the tables.
func report(rows []row, s settings) {
	for place, name := range places {
		fmt.Printf("\n### New connections from a %s\n\n", name)
		fmt.Printf("| Services | | connect(), p50 | over direct | p99 | %d clients: a second | p99 |\n|--:|---|--:|--:|--:|--:|--:|\n", s.clients)
		for _, r := range rows {
			for _, f := range r.sides {
				fmt.Printf("| %s | %s |", thousands(r.services), f.side.name)
				m := &f.from[place]
				if len(m.p50) == 0 {
					fmt.Printf(" – | – | – | – | – |\n")
					continue
				}
				fmt.Printf(" %s | %s | %s | %s | %s |\n", micros(median(m.p50)), micros(median(m.over)), micros(median(m.p99)),
					thousands(int(median(m.rate))), micros(median(m.p99AtOnce)))
			}
		}
	}
	fmt.Printf("\n### Programming\n\n| Services | | all served after the start | CPU of it | EndpointSlice changed to first connection, p50 | slowest | a change right after another, p50 |\n|--:|---|--:|--:|--:|--:|--:|\n")
	for _, r := range rows {
		for _, f := range r.sides {
			switch {
			case f.side.name == direct:
			case f.side.unstarted != nil:
				fmt.Printf("| %s | %s | %v | – | – | – | – |\n", thousands(r.services), f.side.name, f.side.unstarted)
			default:
				fmt.Printf("| %s | %s | %s | %s | %s | %s | %s |\n", thousands(r.services), f.side.name, seconds(f.side.started),
					seconds(f.side.startCPU), millis(median(f.change)), millis(slices.Max(f.change)), millis(median(f.changeBusy)))
			}
		}
	}
}

// median does not change what it is given.
func median[T time.Duration | float64](values []T) T {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}

func micros(d time.Duration) string  { return fmt.Sprintf("%.1f µs", float64(d)/1e3) }
func millis(d time.Duration) string  { return fmt.Sprintf("%.1f ms", float64(d)/1e6) }
func seconds(d time.Duration) string { return fmt.Sprintf("%.2f s", d.Seconds()) }

func thousands(n int) string {
	if n < 1000 {
		return fmt.Sprint(n)
	}
	return fmt.Sprintf("%s,%03d", thousands(n/1000), n%1000)
}
