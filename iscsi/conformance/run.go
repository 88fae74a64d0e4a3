package main

import (
	"context"
	"sync"
	"time"
)

// place is where a test runs.
type place struct {
	urls   []string     // one, or two for tests of several paths
	within []string     // the command that runs the tool there, if any
	done   func() error // called when the test has ended; nil: nothing to do
}

// site finds a place for a test.
type site func(ctx context.Context, test string) (place, error)

// at is a site that serves all tests by the same LUNs.
func at(url func(test string) string) site {
	return func(_ context.Context, test string) (place, error) {
		return place{urls: []string{url(test), url(test)}}, nil
	}
}

// runAll runs each test alone at its site, so many at once. seen, if set, is called
// as each ends, one at a time.
func runAll(ctx context.Context, names []string, workers int, limit time.Duration,
	where site, seen func(string, result)) map[string]result {
	var (
		mu      sync.Mutex
		wg      sync.WaitGroup
		results = map[string]result{}
		next    = make(chan string)
	)
	for range workers {
		wg.Go(func() {
			for name := range next {
				r := runAt(ctx, name, where, limit)
				mu.Lock()
				results[name] = r
				if seen != nil {
					seen(name, r)
				}
				mu.Unlock()
			}
		})
	}
	for _, n := range names {
		if ctx.Err() != nil {
			break
		}
		next <- n
	}
	close(next)
	wg.Wait()
	return results
}

func runAt(ctx context.Context, name string, where site, limit time.Duration) result {
	p, err := where(ctx, name)
	if err != nil {
		return result{outcome: failed, why: err.Error()}
	}
	r := runOne(ctx, name, p, limit)
	if p.done == nil {
		return r
	}
	if err := p.done(); err != nil && r.outcome != hung {
		r.outcome, r.why = failed, "afterwards: "+err.Error()
	}
	return r
}

// count is how many tests ended in each way.
func count(results map[string]result) map[outcome]int {
	n := map[outcome]int{}
	for _, r := range results {
		n[r.outcome]++
	}
	return n
}
