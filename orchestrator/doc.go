// Package orchestrator holds the nouns of a snapshot set and the Service that
// every door offers. It imports nothing of ours; whatever acts lives in the
// packages below it.
package orchestrator
