package mainjob

import (
	"time"

	"github.com/cleave-san/cleave/orchestrator"
)

// window is from when the first of db's snapshots was asked for to when the
// last one was complete, by the guest's clock.
func window(set orchestrator.Set) (began, ended time.Time) {
	for _, v := range vm(set, "db").Volumes {
		if v.Snapshot == "" {
			continue
		}
		if began.IsZero() || v.Began.Before(began) {
			began = v.Began
		}
		if v.Ended.After(ended) {
			ended = v.Ended
		}
	}
	return began, ended
}
