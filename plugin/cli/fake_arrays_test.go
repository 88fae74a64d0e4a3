package cli

import (
	"context"

	"github.com/cleave-san/cleave/arrays"
	"github.com/cleave-san/cleave/arrays/driver"
)

// examineFake finds one array as it should be, and one that has everything.
func examineFake(_ context.Context, o ExamineOptions) ([]Examination, error) {
	if o.Config != "two.yaml" {
		return nil, nil
	}
	quota := driver.Limit{Unit: "snapshots", Used: 9, Most: 10, Next: int64(len(o.Disks))}
	return []Examination{
		{Type: "embedded", Examination: arrays.Examination{
			Array: "main", Took: 3, Description: &driver.Description{Provider: "embedded", MirrorSplit: true},
			Findings: []driver.Finding{{Area: driver.AreaReach, Check: "answers", Result: driver.OK, Detail: "within 3 ms"}},
		}},
		{Type: "cinder", Examination: arrays.Examination{
			Array: "cloud", Took: 80, Findings: []driver.Finding{
				{Area: driver.AreaReach, Check: "answers", Result: driver.OK, Detail: "within 80 ms"},
				{Area: driver.AreaPermission, Check: "read pools", Result: driver.Warning, Detail: "refused"},
				{Area: driver.AreaPermission, Check: "delete snapshots", Result: driver.Unchecked, Detail: "not tried"},
				driver.Room("snapshots of the project", quota, "ask for a larger quota"),
			},
		}},
		{Type: "lvm", Examination: arrays.Examination{
			Array: "local", Took: 30000, Err: driver.Errorf(driver.Unreachable, "it gave no answer within 30s"),
			Findings: []driver.Finding{{Area: driver.AreaReach, Check: "answers", Result: driver.Failed, Detail: "it gave no answer within 30s"}},
		}},
	}, nil
}
