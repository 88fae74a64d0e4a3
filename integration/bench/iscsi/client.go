package iscsi

import (
	"context"
	"fmt"
	"regexp"
	"strconv"

	"github.com/cleave-san/cleave/integration/bench"
)

// perfSeconds is how long iscsi-perf runs; it counts in whole seconds.
const perfSeconds = 2

// run performs the load once, and returns how many requests it made in how many
// seconds.
func (l load) run(ctx context.Context, tool string, s server) (requests, seconds float64, err error) {
	if l.perf {
		return l.runPerf(ctx, tool, s)
	}
	opts := fmt.Sprintf("driver=raw,file.driver=iscsi,file.transport=tcp,file.portal=%s,file.target=%s,file.lun=%d,file.initiator-name=%s",
		s.portal, s.iqn, s.lun, initiator)
	args := []string{"bench", "-c", strconv.Itoa(l.count), "-d", strconv.Itoa(l.depth), "-s", strconv.Itoa(l.block), "-t", "none"}
	if l.write {
		args = append(args, "-w")
	}
	if l.random {
		args = append(args, "-S", strconv.Itoa(l.block*7919))
	}
	if s.user != "" {
		// Its bench command knows no secret objects.
		opts += ",file.user=" + s.user + ",file.password=" + s.secret
	}
	if l.digest {
		opts += ",file.header-digest=crc32c"
	}
	out, err := bench.Output(ctx, tool, append(args, "--image-opts", opts)...)
	if err != nil {
		return 0, 0, err
	}
	return l.completed(out)
}

// completed reads what a client says in the end.
func (l load) completed(out string) (requests, seconds float64, err error) {
	m := completed.FindStringSubmatch(out)
	if m == nil {
		return 0, 0, fmt.Errorf("no time in %.200q", out)
	}
	seconds, err = strconv.ParseFloat(m[1], 64)
	return float64(l.count), seconds, err
}

var (
	completed = regexp.MustCompile(`Run completed in ([0-9.]+) seconds`)
	average   = regexp.MustCompile(`iops average ([0-9]+) `)
)

func (l load) runPerf(ctx context.Context, tool string, s server) (requests, seconds float64, err error) {
	out, err := bench.Output(ctx, tool, "-i", initiator, "-r", "-t", strconv.Itoa(perfSeconds), "-m", strconv.Itoa(l.depth),
		"-b", strconv.Itoa(l.block/512), fmt.Sprintf("iscsi://%s/%s/%d", s.portal, s.iqn, s.lun))
	if err != nil {
		return 0, 0, err
	}
	all := average.FindAllStringSubmatch(out, -1)
	if len(all) == 0 {
		return 0, 0, fmt.Errorf("no rate in %.200q", out)
	}
	rate, err := strconv.ParseFloat(all[len(all)-1][1], 64)
	return rate * perfSeconds, perfSeconds, err
}
