-- Tells MedRestore that a series is complete, by Orthanc's own id of it and nothing else. A hint only: Orthanc does not
-- repeat a call that failed, and MedRestore polls /changes for what it was not told.
function OnStableSeries(seriesId, tags, metadata)
   local headers = {
      ['Content-Type'] = 'application/json',
      ['Authorization'] = 'Bearer ' .. os.getenv('WEBHOOK_TOKEN')
   }
   HttpPost(os.getenv('WEBHOOK_URL'), '{"series": "' .. seriesId .. '"}', headers)
end
